// Every kernel is launched from here, so that whatever runs can also be recorded.
#pragma once

#include <utility>

#include "bind/bind.h"
#include "cpu/table.h"
#include "runtime/recording.h"

namespace aigc {

// Runs kernel(args) without the interpreter lock, or records it where this thread records. `args` must not
// point into the caller's own variables.
template <class Args>
void launch(void (*KernelTable::*kernel)(const Args&), const Args& args) {
  const auto function = kernels().*kernel;
  if (Recording* recording = Recording::current()) {
    recording->add([function, args] { function(args); });
    return;
  }
  py::gil_scoped_release unlocked;
  function(args);
}

// The same for a kernel whose result is read as soon as it has run.
template <class Args>
void launch_now(void (*KernelTable::*kernel)(const Args&), const Args& args, const char* name) {
  if (Recording::current())
    throw py::value_error(std::string(name) + ": can't be recorded, its result is read at once");
  py::gil_scoped_release unlocked;
  (kernels().*kernel)(args);
}

}  // namespace aigc
