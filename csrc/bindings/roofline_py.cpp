// Measures what this machine does at most with the kernels of an instruction set, on several cores at once.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "bindings.h"
#include "gancomp/ops.h"

namespace py = pybind11;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Calls work(thread, times) on every thread at once, over and over for about `seconds`, and returns the most that was done per
// second: `unit` counts what one of the times does on one thread. The threads begin together, and the slowest one ends the
// time.
double best_rate(int threads, double seconds, const std::function<void(int thread, int64_t times)>& work, double unit) {
  constexpr double kSlice = 0.001;  // short enough to fall between what else the machine does
  work(0, 1);
  int64_t times = 1;
  for (double took = 0; took < kSlice; times *= 2) {
    const Clock::time_point begin = Clock::now();
    work(0, times);
    took = seconds_since(begin);
  }
  std::atomic<int> arrived{0};
  std::atomic<bool> stop{false};
  std::vector<double> took(static_cast<size_t>(threads), 0.0);
  double best = 0;
  const auto meet = [&](int round) {
    ++arrived;
    while (arrived < round * threads && !stop) std::this_thread::yield();
  };
  const Clock::time_point began = Clock::now();
  const auto run = [&](int thread) {
    for (int round = 0; !stop; ++round) {
      meet(2 * round + 1);
      const Clock::time_point begin = Clock::now();
      work(thread, times);
      took[static_cast<size_t>(thread)] = seconds_since(begin);
      meet(2 * round + 2);
      if (thread != 0) continue;
      // The others wait for this one at the start of the next round.
      const double slowest = *std::max_element(took.begin(), took.end());
      best = std::max(best, unit * static_cast<double>(times) * threads / slowest);
      if (seconds_since(began) > seconds) stop = true;
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  return best;
}

py::dict measure_roofline(const std::string& isa, int threads, double seconds) {
  const gancomp::CpuKernels* kernels = gancomp::cpu_kernels_for(isa.c_str());
  if (kernels == nullptr) throw py::value_error("isa='" + isa + "': this build or this processor lacks it");
  if (threads < 1 || threads > 256) throw py::value_error("threads: expected 1 to 256");
  double flops = 0, near = 0, far = 0;
  {
    const py::gil_scoped_release release;
    struct alignas(64) Sink {
      float values[16] = {1.0f, 0.5f, 0.5f};
    };
    std::vector<Sink> sinks(static_cast<size_t>(threads));
    constexpr int64_t kRounds = 1000;
    const double each = 2.0 * static_cast<double>(kernels->multiply_adds(kRounds, sinks[0].values));
    flops = best_rate(
        threads, seconds,
        [&](int thread, int64_t times) { kernels->multiply_adds(times * kRounds, sinks[static_cast<size_t>(thread)].values); },
        each);
    const auto copies = [&](int64_t floats) {
      std::vector<std::vector<float>> from(static_cast<size_t>(threads)), to = from;
      for (auto* side : {&from, &to}) {
        for (std::vector<float>& buffer : *side) buffer.assign(static_cast<size_t>(floats), 1.0f);
      }
      return best_rate(
          threads, seconds,
          [&](int thread, int64_t times) {
            for (int64_t i = 0; i < times; ++i) {
              const auto t = static_cast<size_t>(thread);
              kernels->copy_floats(from[t].data(), to[t].data(), floats);
            }
          },
          2.0 * sizeof(float) * static_cast<double>(floats));
    };
    near = copies(16 * 1024);       // 128 KB in all: the second-level cache
    far = copies(8 * 1024 * 1024);  // 64 MB in all: memory
  }
  py::dict result;
  result["flops"] = flops;
  result["cache_bytes"] = near;
  result["memory_bytes"] = far;
  return result;
}

}  // namespace

void bind_roofline(py::module_& m) {
  m.def("measure_roofline", &measure_roofline, py::arg("isa"), py::arg("threads"), py::arg("seconds"),
        "The most that `threads` cores do per second: float32 operations (a multiply-add counts as two), and bytes read and "
        "written by copies in the second-level cache and in memory. Each of the three takes about `seconds`.");
}
