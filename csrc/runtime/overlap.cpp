#include "runtime/overlap.h"

namespace aigc {
namespace {

// The axes that have more than one element, largest stride first.
struct Axes {
  int count = 0;
  int order[kMaxRank];

  Axes(const StridedView& view, const int64_t* shape, int rank) {
    for (int axis = 0; axis < rank; ++axis) {
      if (shape[axis] == 1) continue;
      int place = count++;
      for (; place > 0 && view.strides[order[place - 1]] < view.strides[axis]; --place)
        order[place] = order[place - 1];
      order[place] = axis;
    }
  }
};

int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Elements from the first to behind the last.
int64_t span(const StridedView& view, const int64_t* shape, int rank) {
  int64_t elements = 1;
  for (int axis = 0; axis < rank; ++axis) elements += (shape[axis] - 1) * view.strides[axis];
  return elements;
}

// Views of the same strides, `delta` elements apart: whether along some axis each step of one lies between
// those of the other.
bool interleaved(const StridedView& view, int64_t delta, const int64_t* shape, const Axes& axes) {
  int64_t width = 1;  // of what lies within a step
  for (int i = axes.count - 1; i >= 0; --i) {
    const int64_t step = view.strides[axes.order[i]];
    bool even = step > 0;
    for (int j = 0; j < i && even; ++j) even = view.strides[axes.order[j]] % step == 0;
    if (even) {
      const int64_t apart = ((delta % step) + step) % step;
      if (apart >= width && apart + width <= step) return true;
    }
    width += (shape[axes.order[i]] - 1) * step;
  }
  return false;
}

}  // namespace

bool distinct(const StridedView& out, const int64_t* shape, int rank) {
  const Axes axes(out, shape, rank);
  int64_t width = 1;
  for (int i = axes.count - 1; i >= 0; --i) {
    const int axis = axes.order[i];
    if (out.strides[axis] < width) return false;
    width += (shape[axis] - 1) * out.strides[axis];
  }
  return true;
}

bool separate(const StridedView& out, const StridedView& in, const int64_t* shape, int rank) {
  const auto to = reinterpret_cast<intptr_t>(out.data), from = reinterpret_cast<intptr_t>(in.data);
  const int64_t size = size_of(out.dtype);
  if (from + span(in, shape, rank) * size_of(in.dtype) <= to) return true;
  if (to + span(out, shape, rank) * size <= from) return true;
  if (in.dtype != out.dtype || (from - to) % size) return false;
  for (int axis = 0; axis < rank; ++axis)
    if (shape[axis] != 1 && in.strides[axis] != out.strides[axis]) return false;
  return from == to || interleaved(out, (from - to) / size, shape, Axes(out, shape, rank));
}

}  // namespace aigc
