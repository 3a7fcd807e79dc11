#include "runtime/recording.h"

#include <pybind11/stl.h>

#include "bind/bind.h"
#include "bind/watch.h"

namespace aigc {

void bind_recording(py::module_& m) {
  py::class_<Recording>(m, "Recording", "Kernel calls kept to be run later, as often as wanted.")
      .def(py::init())
      .def(
          "start",
          [](Recording& recording) {
            if (Recording::current())
              throw std::runtime_error("Recording.start: this thread records already; stop that first");
            Recording::current() = &recording;
          },
          "From now on this thread's kernel calls are kept here and don't run.")
      .def(
          "stop",
          [](Recording& recording) {
            if (Recording::current() != &recording)
              throw std::runtime_error("Recording.stop: this thread doesn't record here");
            Recording::current() = nullptr;
          },
          "Kernel calls run again.")
      .def("__len__", &Recording::size)
      .def(
          "run",
          [](const Recording& recording) {
            PythonWatch watch{py::none()};
            py::gil_scoped_release unlocked;
            Poll poll(watch);
            recording.run(poll);
          },
          "Runs the calls in order, without the interpreter lock; Python's signal handlers run at least "
          "every "
          "50 ms but for a single call's length.")
      .def(
          "run_timed",
          [](const Recording& recording) {
            PythonWatch watch{py::none()};
            py::gil_scoped_release unlocked;
            Poll poll(watch);
            return recording.run_timed(poll);
          },
          "The same; nanoseconds of each call.");
}

}  // namespace aigc
