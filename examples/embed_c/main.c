// Translates a picture with a compressed generator:
//   embed_c MODEL.safetensors INPUT.ppm OUTPUT.ppm
#include <gancomp/c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// Reads a binary PPM with 8 bits a channel and no comments in its header; NULL where the file is no such picture.
static uint8_t* read_ppm(const char* path, int* height, int* width) {
  FILE* file = fopen(path, "rb");
  uint8_t* pixels = NULL;
  int maximum = 0;
  if (file == NULL) return NULL;
  if (fscanf(file, "P6 %d %d %d", width, height, &maximum) == 3 && fgetc(file) != EOF && maximum == 255 && *width > 0 &&
      *width <= 16384 && *height > 0 && *height <= 16384) {
    const size_t size = (size_t)*width * (size_t)*height * 3;
    pixels = malloc(size);
    if (pixels != NULL && fread(pixels, 1, size, file) != size) {
      free(pixels);
      pixels = NULL;
    }
  }
  fclose(file);
  return pixels;
}

// Returns whether the whole picture was written.
static int write_ppm(const char* path, const uint8_t* pixels, int height, int width) {
  const size_t size = (size_t)width * (size_t)height * 3;
  FILE* file = fopen(path, "wb");
  int written;
  if (file == NULL) return 0;
  written = fprintf(file, "P6\n%d %d\n255\n", width, height) > 0 && fwrite(pixels, 1, size, file) == size;
  return fclose(file) == 0 && written;
}

int main(int argc, char** argv) {
  gancomp_model* model = NULL;
  gancomp_engine* engine = NULL;
  uint8_t *pixels = NULL, *result = NULL;
  int height = 0, width = 0, status = 1;
  if (argc != 4) {
    fprintf(stderr, "usage: %s MODEL.safetensors INPUT.ppm OUTPUT.ppm\n", argv[0]);
    return 2;
  }
  if (gancomp_abi_version() != GANCOMP_ABI_VERSION) {
    fprintf(stderr, "libgancomp %s does not fit the header that this program was built with\n", gancomp_version());
  } else if (gancomp_model_load(argv[1], NULL, &model) != GANCOMP_OK ||
             gancomp_engine_create(model, NULL, &engine) != GANCOMP_OK) {
    fprintf(stderr, "%s\n", gancomp_error_message());
  } else if (gancomp_model_in_channels(model) != 3 || gancomp_model_out_channels(model) != 3) {
    fprintf(stderr, "%s: does not map colour images to colour images\n", argv[1]);
  } else if ((pixels = read_ppm(argv[2], &height, &width)) == NULL) {
    fprintf(stderr, "%s: not a binary PPM picture of 8 bits\n", argv[2]);
  } else if ((result = malloc((size_t)width * (size_t)height * 3)) == NULL) {
    fprintf(stderr, "not enough memory\n");
  } else if (gancomp_engine_run_u8(engine, pixels, result, 1, height, width) != GANCOMP_OK) {
    fprintf(stderr, "%s\n", gancomp_error_message());
  } else if (!write_ppm(argv[3], result, height, width)) {
    fprintf(stderr, "%s: cannot be written\n", argv[3]);
  } else {
    status = 0;
  }
  free(result);
  free(pixels);
  gancomp_engine_free(engine);
  gancomp_model_free(model);
  return status;
}
