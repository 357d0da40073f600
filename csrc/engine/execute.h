// One run of a program over a team of threads.
#pragma once

#include "../core/team.h"
#include "compile.h"
#include "plan.h"

namespace gancomp::engine {

// Images in and out: float planes or bytes, one of each.
struct Images {
  const float* x_planes = nullptr;
  const uint8_t* x_bytes = nullptr;
  float* y_planes = nullptr;
  uint8_t* y_bytes = nullptr;
};

class Execution {
 public:
  // `scratch`: plan.scratch floats for every thread. `times`: milliseconds by step over all images; null: not wanted.
  Execution(const CpuKernels& kernels, const Program& program, const Plan& plan, float* arena, float* scratch, Team& team,
            const Images& images, int64_t count, double* times)
      : kernels_(kernels),
        program_(program),
        plan_(plan),
        arena_(arena),
        scratch_(scratch),
        team_(team),
        images_(images),
        count_(count),
        times_(times) {}

  // Allocates nothing and does not throw.
  void run();

 private:
  // By which a value as it lies in memory is normalised; all null: it is read as it is.
  struct Norm {
    const float *mean = nullptr, *scale = nullptr, *shift = nullptr;
    const float *low = nullptr, *high = nullptr;  // extremes before it, where they are known
  };
  // One step of one image in one thread.
  struct Task {
    const Step& step;
    const StepPlan& plan;
    int index;
    int64_t image;
    Norm norms[kMaxInputs];  // of the step's inputs
    float* scratch;
    int begin = 0, end = 0, strip = 0;  // rows of a strip, as StepPlan::rows counts them
  };

  void work(int thread);
  void run_step(int index, int64_t image, int thread);
  void run_strip(Task& task) const;
  Norm norm_of(int value, float* params) const;
  void fold_weights(const Step& step, const Norm& norm, float* to) const;
  void gather(const Task& task) const;
  void conv(const Task& task) const;
  void transposed(const Task& task) const;
  void depthwise(const Task& task) const;
  void prepare_int8(const Task& task) const;
  BlockedQuantizeParams quantize(const Task& task) const;
  void conv_int8(const Task& task) const;
  void winograd_input(const Task& task) const;
  void winograd_multiply(const Task& task) const;
  void winograd_output(const Task& task) const;
  void pointwise(const Task& task) const;
  void head(const Task& task) const;
  void emit(const Task& task) const;
  BlockedGatherParams gather_params(const Task& task, int input, int begin, int end) const;
  template <typename Use>
  void gather_by_block(const Task& task, int begin, int end, const Use& use) const;
  BlockedConvParams conv_params(const Task& task) const;
  ChannelSums sums_of(const Task& task) const;

  const CpuKernels& kernels_;
  const Program& program_;
  const Plan& plan_;
  float* const arena_;
  float* const scratch_;
  Team& team_;
  const Images images_;
  const int64_t count_;
  double* const times_;
  double step_begin_ = 0;
};

}  // namespace gancomp::engine
