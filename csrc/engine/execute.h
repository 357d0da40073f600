// One run of a program over a team of threads.
#pragma once

#include <atomic>

#include "../core/team.h"
#include "compile.h"
#include "plan.h"

namespace gancomp::engine {

// Images in and out: float planes or bytes, one of each. Label maps in: one-hot planes or labels.
struct Images {
  const float* x_planes = nullptr;
  const uint8_t* x_bytes = nullptr;
  const int32_t* x_labels = nullptr;  // [N, 1 (+ 1), H, W], edges second
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
        codes_(plan.codes < 0 ? nullptr : reinterpret_cast<int32_t*>(arena + plan.codes)),
        scratch_(scratch),
        team_(team),
        images_(images),
        count_(count),
        times_(times) {}

  // Allocates nothing and does not throw. Returns whether the label maps were such; if not, the images are of no use.
  bool run();

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
  Norm plane_norm(int value, float* params) const;
  static void fold_weights(const Step& step, const Floats& weights, const Floats& bias, const Norm& norm, float* to);
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
  ChannelSums part_sums(int value, int part) const;

  struct Piece;
  void labels(const Task& task) const;
  template <typename Use>
  void each_piece(const Task& task, int around, const Use& use) const;
  LabelConvParams label_params(const Task& task, const Piece& piece) const;
  void label(const Task& task) const;
  void embed(const Task& task, const Piece& piece, int block) const;
  void filter(const Task& task, const Piece& piece, int block, int side, const float* mean, float* to,
              const ChannelSums& sums) const;
  void label_statistics(const Task& task) const;
  BlockedModulateParams modulate_params(const Task& task, int row, int column) const;
  void modulate(const Task& task) const;
  void fold_sides(const Task& task) const;
  void label_modulate(const Task& task) const;
  void enlarge(const Task& task) const;

  const CpuKernels& kernels_;
  const Program& program_;
  const Plan& plan_;
  float* const arena_;
  int32_t* const codes_;  // of the label map, where there is one
  float* const scratch_;
  Team& team_;
  const Images images_;
  const int64_t count_;
  double* const times_;
  double step_begin_ = 0;
  mutable std::atomic<bool> wrong_labels_{false};
};

}  // namespace gancomp::engine
