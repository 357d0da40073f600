// What test_c_api.c needs and C cannot make: a model file, and the C++ interface's results.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A small ResNet file with 2 input channels and 1 output channel; valid until the process ends.
const void* oracle_file(size_t* size);
int64_t oracle_parameters(void);
int64_t oracle_macs(int64_t height, int64_t width);
// Runs that file by gancomp::Engine with one thread.
void oracle_run_f32(const float* x, float* y, int64_t n, int64_t height, int64_t width);
void oracle_run_u8(const uint8_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width);

#ifdef __cplusplus
}
#endif
