// The engine for Python. Users meet gancomp/engine.py, which brings images into the layouts that are taken here.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings.h"
#include "gancomp/engine.h"

namespace py = pybind11;

namespace {

using gancomp::EngineError;
using gancomp::EngineOptions;
using gancomp::Model;

// The package's own exception for an error of the engine.
py::object exception_of(EngineError::Code code) {
  const py::module_ errors = py::module_::import("gancomp.errors");
  switch (code) {
    case EngineError::Code::invalid_argument:
      return errors.attr("ConfigError");
    case EngineError::Code::memory:
      return py::reinterpret_borrow<py::object>(PyExc_MemoryError);
    default:
      return errors.attr("CheckpointError");
  }
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const EngineError& error) {
    PyErr_SetString(exception_of(error.code()).ptr(), error.what());
  }
}

using Isa = std::optional<std::string>;

EngineOptions model_options(const std::string& precision, const Isa& isa) {
  EngineOptions options;
  options.precision = precision == "int8" ? gancomp::Precision::int8 : gancomp::Precision::f32;
  options.isa = isa ? isa->c_str() : nullptr;
  return options;
}

EngineOptions engine_options(int threads) {
  EngineOptions options;
  options.threads = threads;
  return options;
}

class Engine {
 public:
  Engine(std::shared_ptr<const Model> model, int threads)
      : model_(std::move(model)), engine_(model_, engine_options(threads)) {}

  static std::unique_ptr<Engine> load(const std::string& path, int threads, const std::string& precision, const Isa& isa) {
    const py::gil_scoped_release release;
    return std::make_unique<Engine>(Model::load(path, model_options(precision, isa)), threads);
  }

  static std::unique_ptr<Engine> parse(const py::bytes& data, int threads, const std::string& precision, const Isa& isa) {
    char* bytes = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(data.ptr(), &bytes, &size) != 0) throw py::error_already_set();
    const py::gil_scoped_release release;
    return std::make_unique<Engine>(Model::parse(bytes, static_cast<size_t>(size), model_options(precision, isa)), threads);
  }

  std::unique_ptr<Engine> another(int threads) const {
    const py::gil_scoped_release release;
    return std::make_unique<Engine>(model_, threads);
  }

  // [N, C, H, W]
  void run_planes(const py::array_t<float, py::array::c_style>& x, py::array_t<float, py::array::c_style>& y) {
    check(x, model_->in_channels(), 1, y, 1);
    const float* const from = x.data();
    float* const to = y.mutable_data();
    const int64_t n = x.shape(0), height = x.shape(2), width = x.shape(3);
    const py::gil_scoped_release release;
    engine_.run(from, to, n, height, width);
  }

  // [N, H, W, C]
  void run_bytes(const py::array_t<uint8_t, py::array::c_style>& x, py::array_t<uint8_t, py::array::c_style>& y) {
    check(x, model_->in_channels(), 3, y, 3);
    const uint8_t* const from = x.data();
    uint8_t* const to = y.mutable_data();
    const int64_t n = x.shape(0), height = x.shape(1), width = x.shape(2);
    const py::gil_scoped_release release;
    engine_.run(from, to, n, height, width);
  }

  // Labels [N, 1 (+ 1), H, W] to float planes or bytes.
  template <typename T>
  void run_labels(const py::array_t<int32_t, py::array::c_style>& x, py::array_t<T, py::array::c_style>& y) {
    const int inputs = 1 + model_->edges();
    std::is_same_v<T, float> ? check(x, inputs, 1, y, 1) : check(x, inputs, 1, y, 3);
    const int32_t* const from = x.data();
    T* const to = y.mutable_data();
    const int64_t n = x.shape(0), height = x.shape(2), width = x.shape(3);
    const py::gil_scoped_release release;
    engine_.run_labels(from, to, n, height, width);
  }

  std::vector<std::tuple<std::string, double, int64_t, int64_t>> steps() const {
    std::vector<std::tuple<std::string, double, int64_t, int64_t>> result;
    for (size_t i = 0; i < engine_.step_count(); ++i) {
      const gancomp::Engine::StepTime step = engine_.step(i);
      result.emplace_back(step.name, step.ms, step.macs, step.bytes);
    }
    return result;
  }

  void set_profiling(bool on) { engine_.set_profiling(on); }
  int threads() const { return engine_.threads(); }
  size_t workspace(int64_t height, int64_t width) const { return engine_.workspace(height, width); }
  const Model& model() const { return *model_; }

 private:
  // Nothing is read or written beyond an array, whoever calls.
  void check(const py::array& x, int inputs, int x_channels, const py::array& y, int y_channels) const {
    bool fits = x.ndim() == 4 && y.ndim() == 4;
    // Batch, height and width.
    for (int i = 0; fits && i < 3; ++i) fits = x.shape(i < x_channels ? i : i + 1) == y.shape(i < y_channels ? i : i + 1);
    if (!fits || x.shape(x_channels) != inputs || y.shape(y_channels) != model_->out_channels()) {
      throw EngineError(EngineError::Code::invalid_argument, "x and y: shapes do not fit the network");
    }
  }

  std::shared_ptr<const Model> model_;
  gancomp::Engine engine_;
};

}  // namespace

void bind_engine(py::module_& m) {
  py::register_local_exception_translator(translate);
  py::class_<Engine>(m, "Engine", "See gancomp.Engine.")
      .def_static("load", &Engine::load, py::arg("path"), py::arg("threads"), py::arg("precision"), py::arg("isa"))
      .def_static("parse", &Engine::parse, py::arg("data"), py::arg("threads"), py::arg("precision"), py::arg("isa"))
      .def("another", &Engine::another, py::arg("threads"))
      .def("run_planes", &Engine::run_planes, py::arg("x").noconvert(), py::arg("y").noconvert())
      .def("run_bytes", &Engine::run_bytes, py::arg("x").noconvert(), py::arg("y").noconvert())
      .def("run_labels", &Engine::run_labels<float>, py::arg("x").noconvert(), py::arg("y").noconvert())
      .def("run_labels", &Engine::run_labels<uint8_t>, py::arg("x").noconvert(), py::arg("y").noconvert())
      .def("set_profiling", &Engine::set_profiling, py::arg("on"), py::call_guard<py::gil_scoped_release>())
      .def("steps", &Engine::steps)
      .def("workspace", &Engine::workspace, py::arg("height"), py::arg("width"))
      .def("macs", [](const Engine& self, int64_t height, int64_t width) { return self.model().macs(height, width); })
      .def_property_readonly("threads", &Engine::threads)
      .def_property_readonly(
          "precision",
          [](const Engine& self) { return std::string(self.model().precision() == gancomp::Precision::int8 ? "int8" : "f32"); })
      .def_property_readonly("isa", [](const Engine& self) { return std::string(self.model().isa()); })
      .def_property_readonly("in_channels", [](const Engine& self) { return self.model().in_channels(); })
      .def_property_readonly("out_channels", [](const Engine& self) { return self.model().out_channels(); })
      .def_property_readonly("classes", [](const Engine& self) { return self.model().classes(); })
      .def_property_readonly("edges", [](const Engine& self) { return self.model().edges(); })
      .def_property_readonly("parameters", [](const Engine& self) { return self.model().parameters(); });
}
