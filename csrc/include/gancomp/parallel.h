// How kernels use several threads: through an executor that the caller supplies.
#pragma once

#include <cstdint>

namespace gancomp {

// Runs task(argument, begin, end) over pieces of [0, count), maybe at once, and returns when all are done. Inside PyTorch
// this is PyTorch's own thread pool, so that a process never runs two pools at a time.
struct Executor {
  using Task = void (*)(void* argument, int64_t begin, int64_t end);

  void (*run)(void* context, int64_t count, Task task, void* argument) = nullptr;  // null: the calling thread
  void* context = nullptr;

  template <typename Function>
  void parallel_for(int64_t count, Function&& function) const {
    auto task = [](void* argument, int64_t begin, int64_t end) { (*static_cast<Function*>(argument))(begin, end); };
    if (run == nullptr || count <= 1) {
      task(&function, 0, count);
    } else {
      run(context, count, task, &function);
    }
  }
};

}  // namespace gancomp
