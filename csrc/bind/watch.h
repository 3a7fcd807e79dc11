// Python's signal handlers and callbacks as native runs see them.
#pragma once

#include <utility>

#include "bind/bind.h"
#include "runtime/poll.h"

namespace aigc {

class PythonWatch : public Watch {
 public:
  explicit PythonWatch(py::object on_step) : on_step_(std::move(on_step)), silent_(on_step_.is_none()) {}

  void interrupted() override {
    py::gil_scoped_acquire locked;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

  void after(int64_t evaluation) override {
    if (silent_) return;
    py::gil_scoped_acquire locked;
    on_step_(evaluation);
  }

 private:
  py::object on_step_;
  bool silent_;
};

}  // namespace aigc
