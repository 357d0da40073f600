#include "gancomp/c_api.h"

#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "gancomp/engine.h"

// The handles are these; their names are C's.
struct gancomp_model {
  std::shared_ptr<const gancomp::Model> model;
};
struct gancomp_engine {
  gancomp::Engine engine;
};

namespace {

using gancomp::EngineError;
using Code = EngineError::Code;

static_assert(GANCOMP_INVALID_ARGUMENT == static_cast<int>(Code::invalid_argument) &&
                  GANCOMP_FILE == static_cast<int>(Code::file) && GANCOMP_FORMAT == static_cast<int>(Code::format) &&
                  GANCOMP_UNSUPPORTED == static_cast<int>(Code::unsupported) &&
                  GANCOMP_MEMORY == static_cast<int>(Code::memory),
              "the two interfaces share their codes");
static_assert(GANCOMP_F32 == static_cast<int>(gancomp::Precision::f32) &&
                  GANCOMP_INT8 == static_cast<int>(gancomp::Precision::int8),
              "and precisions");

// Of fixed size, so that a failure for want of memory needs none.
thread_local char error_message[1024] = "";

gancomp_status failed(gancomp_status status, const char* message) {
  std::snprintf(error_message, sizeof(error_message), "%s", message);
  return status;
}

// Runs `body`, and turns what it throws into a status and a message.
template <typename Body>
gancomp_status guarded(Body&& body) {
  try {
    body();
    return GANCOMP_OK;
  } catch (const EngineError& error) {
    return failed(static_cast<gancomp_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return failed(GANCOMP_MEMORY, "not enough memory");
  } catch (const std::exception& error) {
    return failed(GANCOMP_INTERNAL, error.what());
  } catch (...) {
    return failed(GANCOMP_INTERNAL, "unknown exception");
  }
}

template <typename T>
T& required(T* pointer, const char* name) {
  if (pointer == nullptr) throw EngineError(Code::invalid_argument, std::string(name) + ": expected a pointer, got NULL");
  return *pointer;
}

gancomp::EngineOptions engine_options(const gancomp_options* options) {
  gancomp::EngineOptions result;
  if (options == nullptr) return result;
  if (options->size != sizeof(gancomp_options)) {
    throw EngineError(Code::invalid_argument, "options: size is " + std::to_string(options->size) + ", this library expects " +
                                                  std::to_string(sizeof(gancomp_options)) + " (GANCOMP_OPTIONS_INIT sets it)");
  }
  if (options->precision != GANCOMP_F32 && options->precision != GANCOMP_INT8) {
    throw EngineError(Code::invalid_argument,
                      "options: precision is " + std::to_string(options->precision) + ", expected GANCOMP_F32 or GANCOMP_INT8");
  }
  result.threads = options->threads;
  result.precision = static_cast<gancomp::Precision>(options->precision);
  result.isa = options->isa;
  return result;
}

// Hands out a new model through `result`.
template <typename Make>
gancomp_status make_model(gancomp_model** result, Make&& make) {
  return guarded([&] {
    gancomp_model*& slot = required(result, "model");
    slot = new gancomp_model{make()};
  });
}

}  // namespace

int32_t gancomp_abi_version(void) { return GANCOMP_ABI_VERSION; }

const char* gancomp_version(void) { return GANCOMP_VERSION; }

const char* gancomp_error_message(void) { return error_message; }

gancomp_status gancomp_model_load(const char* path, const gancomp_options* options, gancomp_model** model) {
  return make_model(model, [&] { return gancomp::Model::load(&required(path, "path"), engine_options(options)); });
}

gancomp_status gancomp_model_parse(const void* data, size_t size, const gancomp_options* options, gancomp_model** model) {
  return make_model(model, [&] {
    required(static_cast<const char*>(data), "data");
    return gancomp::Model::parse(data, size, engine_options(options));
  });
}

void gancomp_model_free(gancomp_model* model) { delete model; }

int32_t gancomp_model_in_channels(const gancomp_model* model) { return model == nullptr ? 0 : model->model->in_channels(); }

int32_t gancomp_model_out_channels(const gancomp_model* model) { return model == nullptr ? 0 : model->model->out_channels(); }

int64_t gancomp_model_parameters(const gancomp_model* model) { return model == nullptr ? 0 : model->model->parameters(); }

const char* gancomp_model_isa(const gancomp_model* model) { return model == nullptr ? nullptr : model->model->isa(); }

gancomp_precision gancomp_model_precision(const gancomp_model* model) {
  return model == nullptr ? GANCOMP_F32 : static_cast<gancomp_precision>(model->model->precision());
}

int32_t gancomp_model_classes(const gancomp_model* model) { return model == nullptr ? 0 : model->model->classes(); }

int32_t gancomp_model_edges(const gancomp_model* model) { return model != nullptr && model->model->edges() ? 1 : 0; }

gancomp_status gancomp_model_macs(const gancomp_model* model, int64_t height, int64_t width, int64_t* macs) {
  return guarded([&] { required(macs, "macs") = required(model, "model").model->macs(height, width); });
}

gancomp_status gancomp_engine_create(const gancomp_model* model, const gancomp_options* options, gancomp_engine** engine) {
  return guarded([&] {
    gancomp_engine*& slot = required(engine, "engine");
    slot = new gancomp_engine{gancomp::Engine(required(model, "model").model, engine_options(options))};
  });
}

void gancomp_engine_free(gancomp_engine* engine) { delete engine; }

int32_t gancomp_engine_threads(const gancomp_engine* engine) { return engine == nullptr ? 0 : engine->engine.threads(); }

gancomp_status gancomp_engine_workspace(const gancomp_engine* engine, int64_t height, int64_t width, size_t* bytes) {
  return guarded([&] { required(bytes, "bytes") = required(engine, "engine").engine.workspace(height, width); });
}

gancomp_status gancomp_engine_run_f32(gancomp_engine* engine, const float* x, float* y, int64_t n, int64_t height,
                                      int64_t width) {
  return guarded([&] { required(engine, "engine").engine.run(x, y, n, height, width); });
}

gancomp_status gancomp_engine_run_u8(gancomp_engine* engine, const uint8_t* x, uint8_t* y, int64_t n, int64_t height,
                                     int64_t width) {
  return guarded([&] { required(engine, "engine").engine.run(x, y, n, height, width); });
}

gancomp_status gancomp_engine_run_labels_f32(gancomp_engine* engine, const int32_t* x, float* y, int64_t n, int64_t height,
                                             int64_t width) {
  return guarded([&] { required(engine, "engine").engine.run_labels(x, y, n, height, width); });
}

gancomp_status gancomp_engine_run_labels_u8(gancomp_engine* engine, const int32_t* x, uint8_t* y, int64_t n, int64_t height,
                                            int64_t width) {
  return guarded([&] { required(engine, "engine").engine.run_labels(x, y, n, height, width); });
}

gancomp_status gancomp_engine_set_profiling(gancomp_engine* engine, int on) {
  return guarded([&] { required(engine, "engine").engine.set_profiling(on != 0); });
}

size_t gancomp_engine_step_count(const gancomp_engine* engine) { return engine == nullptr ? 0 : engine->engine.step_count(); }

gancomp_status gancomp_engine_step(const gancomp_engine* engine, size_t index, gancomp_step* step) {
  return guarded([&] {
    gancomp_step& result = required(step, "step");
    const gancomp::Engine::StepTime time = required(engine, "engine").engine.step(index);
    std::snprintf(result.name, sizeof(result.name), "%s", time.name.c_str());
    result.ms = time.ms;
    result.macs = time.macs;
    result.bytes = time.bytes;
  });
}
