#include "gancomp/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>

#include "../core/team.h"
#include "compile.h"
#include "execute.h"
#include "model_file.h"
#include "plan.h"

namespace gancomp {
namespace {

using Code = EngineError::Code;

const CpuKernels* pick_kernels(const EngineOptions& options) {
  if (options.isa != nullptr) {
    const CpuKernels* kernels = cpu_kernels_for(options.isa);
    if (kernels == nullptr) {
      std::string allowed;
      for (const char* const* name = built_isas(); *name != nullptr; ++name) {
        if (cpu_kernels_for(*name) != nullptr) allowed += (allowed.empty() ? "" : ", ") + std::string(*name);
      }
      throw EngineError(Code::invalid_argument,
                        "isa='" + std::string(options.isa).substr(0, 40) + "': this build on this processor has " + allowed);
    }
    return kernels;
  }
  const char* error = "no CPU kernels";
  const CpuKernels* kernels = cpu_kernels(&error);
  if (kernels == nullptr) throw EngineError(Code::invalid_argument, error);
  return kernels;
}

class CompiledModel : public Model {
 public:
  CompiledModel(const engine::Graph& graph, const EngineOptions& options)
      : kernels_(*pick_kernels(options)),
        precision_(options.precision),
        program_(engine::compile(graph, options.precision == Precision::int8)) {
    if (precision_ == Precision::int8 && kernels_.int8_conv == nullptr) {
      throw EngineError(Code::invalid_argument,
                        "precision=int8: needs 8-bit dot products (AVX-512 VNNI), which the instruction set '" +
                            std::string(kernels_.isa) + "' lacks; use f32");
    }
    const auto& steps = program_.steps;
    if (precision_ == Precision::int8 && std::none_of(steps.begin(), steps.end(), [](const auto& step) { return step.int8; })) {
      throw EngineError(Code::unsupported, "precision=int8: no convolution of this network runs in 8 bits; use f32");
    }
  }

  int in_channels() const override { return program_.in_channels; }
  int out_channels() const override { return program_.out_channels; }
  int classes() const override { return program_.classes; }
  bool edges() const override { return program_.edges; }
  int64_t parameters() const override { return program_.parameters; }
  int64_t macs(int64_t height, int64_t width) const override { return engine::count_macs(program_, height, width); }
  Precision precision() const override { return precision_; }
  const char* isa() const override { return kernels_.isa; }

  const CpuKernels& kernels() const { return kernels_; }
  const engine::Program& program() const { return program_; }

 private:
  const CpuKernels& kernels_;
  const Precision precision_;
  engine::Program program_;
};

EngineError no_threads(const std::system_error& error) {
  return EngineError(Code::memory, std::string("threads: the system starts no more (") + error.what() + ")");
}

template <typename Make>
std::shared_ptr<const Model> make_model(Make make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    throw EngineError(Code::memory, "not enough memory for the model");
  }
}

}  // namespace

std::shared_ptr<const Model> Model::load(const std::string& path, const EngineOptions& options) {
  return make_model([&] { return std::make_shared<CompiledModel>(engine::read_graph_file(path), options); });
}

std::shared_ptr<const Model> Model::parse(const void* data, size_t size, const EngineOptions& options) {
  return make_model([&] { return std::make_shared<CompiledModel>(engine::read_graph(data, size, "model"), options); });
}

struct Engine::Impl {
  Impl(std::shared_ptr<const Model> given, const EngineOptions& options)
      : model(std::dynamic_pointer_cast<const CompiledModel>(std::move(given))), team(thread_count(options)) {
    if (model == nullptr) throw EngineError(Code::invalid_argument, "model: null");
    times.resize(model->program().steps.size());
  }

  static int thread_count(const EngineOptions& options) {
    constexpr int kMost = 256;
    if (options.threads < 0 || options.threads > kMost) {
      throw EngineError(Code::invalid_argument,
                        "threads=" + std::to_string(options.threads) + ": expected 0 (automatic) to " + std::to_string(kMost));
    }
    return options.threads > 0 ? options.threads : default_threads();
  }

  void prepare(int64_t height, int64_t width) {
    if (plan.height == height && plan.width == width) return;
    engine::Plan next = engine::make_plan(model->program(), height, width);
    engine::Floats next_arena(next.arena), next_scratch(next.scratch * team.size());
    arena = std::move(next_arena), scratch = std::move(next_scratch);
    plan = std::move(next);
  }

  void run(const engine::Images& images, int64_t n, int64_t height, int64_t width) {
    std::lock_guard<std::mutex> lock(mutex);
    if (n < 1) throw EngineError(Code::invalid_argument, "n=" + std::to_string(n) + ": expected at least 1 image");
    const bool of_labels = model->classes() > 0;
    if ((images.x_labels != nullptr && !of_labels) || (images.x_bytes != nullptr && of_labels)) {
      throw EngineError(Code::invalid_argument, of_labels ? "x: expected a label map (this network takes no images), got bytes"
                                                          : "x: expected an image (this network takes no label maps)");
    }
    if ((images.x_planes == nullptr && images.x_bytes == nullptr && images.x_labels == nullptr) ||
        (images.y_planes == nullptr && images.y_bytes == nullptr)) {
      throw EngineError(Code::invalid_argument, "x and y: expected memory, got null");
    }
    try {
      prepare(height, width);
      team.after_fork();
    } catch (const std::bad_alloc&) {
      throw EngineError(Code::memory,
                        "not enough memory for images of " + std::to_string(height) + "x" + std::to_string(width));
    } catch (const std::system_error& error) {
      throw no_threads(error);
    }
    engine::Execution execution{model->kernels(),
                                model->program(),
                                plan,
                                arena.data(),
                                scratch.data(),
                                team,
                                images,
                                n,
                                profiling ? times.data() : nullptr};
    if (!execution.run()) {
      const std::string last = std::to_string(model->classes() - 1);
      throw EngineError(Code::invalid_argument,
                        images.x_labels != nullptr
                            ? "x: has labels that the network does not know; expected 0 to " + last
                            : "x: expected the one-hot image of a label map: at every pixel one class of 0 to " + last +
                                  " that is 1, all others 0" + (model->edges() ? ", and an edge of 0 or 1" : ""));
    }
  }

  std::shared_ptr<const CompiledModel> model;
  Team team;
  std::mutex mutex;
  engine::Plan plan;
  engine::Floats arena, scratch;
  bool profiling = false;
  std::vector<double> times;  // milliseconds by step
};

Engine::Engine(std::shared_ptr<const Model> model, const EngineOptions& options) {
  try {
    impl_ = std::make_unique<Impl>(std::move(model), options);
  } catch (const std::bad_alloc&) {
    throw EngineError(Code::memory, "not enough memory for an engine");
  } catch (const std::system_error& error) {
    throw no_threads(error);
  }
}

Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

const Model& Engine::model() const { return *impl_->model; }
int Engine::threads() const { return impl_->team.size(); }

void Engine::run(const float* x, float* y, int64_t n, int64_t height, int64_t width) {
  engine::Images images;
  images.x_planes = x, images.y_planes = y;
  impl_->run(images, n, height, width);
}

void Engine::run(const uint8_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width) {
  engine::Images images;
  images.x_bytes = x, images.y_bytes = y;
  impl_->run(images, n, height, width);
}

void Engine::run_labels(const int32_t* x, float* y, int64_t n, int64_t height, int64_t width) {
  engine::Images images;
  images.x_labels = x, images.y_planes = y;
  impl_->run(images, n, height, width);
}

void Engine::run_labels(const int32_t* x, uint8_t* y, int64_t n, int64_t height, int64_t width) {
  engine::Images images;
  images.x_labels = x, images.y_bytes = y;
  impl_->run(images, n, height, width);
}

size_t Engine::workspace(int64_t height, int64_t width) const {
  const engine::Plan plan = engine::make_plan(impl_->model->program(), height, width);
  return static_cast<size_t>(plan.arena + plan.scratch * impl_->team.size()) * sizeof(float);
}

void Engine::set_profiling(bool on) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  impl_->profiling = on;
}

size_t Engine::step_count() const { return impl_->model->program().steps.size(); }

Engine::StepTime Engine::step(size_t index) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  if (index >= step_count()) {
    throw EngineError(Code::invalid_argument,
                      "index=" + std::to_string(index) + ": expected below " + std::to_string(step_count()));
  }
  StepTime result;
  result.name = impl_->model->program().steps[index].name;
  result.ms = impl_->times[index];
  if (!impl_->plan.steps.empty()) {
    result.macs = impl_->plan.steps[index].macs;
    result.bytes = impl_->plan.steps[index].bytes;
  }
  return result;
}

}  // namespace gancomp
