// Translates a picture with a compressed generator:
//   embed_cpp MODEL.safetensors INPUT.ppm OUTPUT.ppm
#include <gancomp/engine.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

// A binary PPM with 8 bits a channel and no comments in its header.
Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int maximum = 0;
  Picture picture;
  file >> magic >> picture.width >> picture.height >> maximum;
  file.get();
  if (!file || magic != "P6" || maximum != 255 || picture.width < 1 || picture.width > 16384 || picture.height < 1 ||
      picture.height > 16384) {
    throw std::runtime_error(path + ": not a binary PPM picture of 8 bits");
  }
  picture.pixels.resize(static_cast<size_t>(picture.width * picture.height * 3));
  if (!file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()))) {
    throw std::runtime_error(path + ": ends too early");
  }
  return picture;
}

void write_ppm(const std::string& path, const Picture& picture) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << picture.width << ' ' << picture.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL.safetensors INPUT.ppm OUTPUT.ppm\n", argv[0]);
    return 2;
  }
  try {
    gancomp::Engine engine(gancomp::Model::load(argv[1]));
    if (engine.model().in_channels() != 3 || engine.model().out_channels() != 3) {
      throw std::runtime_error(std::string(argv[1]) + ": does not map colour images to colour images");
    }
    Picture picture = read_ppm(argv[2]);
    Picture result{picture.width, picture.height, std::vector<uint8_t>(picture.pixels.size())};
    engine.run(picture.pixels.data(), result.pixels.data(), 1, picture.height, picture.width);
    write_ppm(argv[3], result);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
