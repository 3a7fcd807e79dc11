// A program of elementwise steps over strided tensors. Memory-bound unless it has transcendental steps: reads
// each input and writes the result once. A tile of 1,024 elements goes through all steps before the next; the
// values between them stay in the L1 cache, and what lies contiguous is neither copied in nor out.
#include "cpu/steps.h"
#include "cpu/tile_io.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr int kTensors = PointwiseArgs::kMaxInputs + 1,
              kValues = PointwiseArgs::kMaxInputs + PointwiseArgs::kMaxSteps;
constexpr size_t kConstantBytes =
    sizeof(float) * kLanes * PointwiseArgs::kMaxSteps * PointwiseArgs::kMaxOperands;

using PointwiseWalk = Walk<kTensors>;
using PointwiseTile = Tile<kTensors>;

PointwiseWalk walk_of(const PointwiseArgs& a) {
  PointwiseWalk walk;
  walk.tensors = a.num_inputs + 1, walk.rank = 0;
  int64_t strides[kTensors];
  for (int axis = 0; axis < a.rank; ++axis) {
    if (a.shape[axis] == 1) continue;
    strides[0] = a.out.strides[axis];
    for (int k = 0; k < a.num_inputs; ++k) strides[k + 1] = a.inputs[k].strides[axis];
    walk.add_axis(a.shape[axis], strides);
  }
  if (walk.rank == 0) {
    for (int64_t& stride : strides) stride = 1;
    walk.add_axis(1, strides);
  }
  walk.sort();
  walk.join();
  walk.cut(a.num_steps <= 1);
  return walk;
}

// What all tiles share: which inputs are read, and which slot of the scratch memory a step's result goes to.
struct Layout {
  PointwiseWalk walk;
  bool read[PointwiseArgs::kMaxInputs];
  int slots[PointwiseArgs::kMaxSteps];
  int num_slots;
};

// A step's slot is free again after the last step that reads it; inputs keep theirs.
Layout layout_of(const PointwiseArgs& a) {
  Layout layout{walk_of(a), {}, {}, a.num_inputs};
  int last_use[kValues] = {};
  for (int s = 0; s < a.num_steps; ++s)
    for (int value : a.steps[s].values)
      if (value >= 0) last_use[value] = s;
  if (a.num_steps == 0) layout.read[0] = true;
  uint64_t taken = 0;
  static_assert(kValues <= 64, "a bit for each slot");
  for (int s = 0; s < a.num_steps; ++s) {
    int slot = a.num_inputs;
    while (taken >> slot & 1) ++slot;
    layout.slots[s] = slot;
    taken |= uint64_t(1) << slot;
    if (slot >= layout.num_slots) layout.num_slots = slot + 1;
    for (int value : a.steps[s].values) {
      if (value < 0) continue;
      if (value < a.num_inputs) {
        layout.read[value] = true;
      } else if (last_use[value] == s) {
        taken &= ~(uint64_t(1) << layout.slots[value - a.num_inputs]);
      }
    }
    // Nobody reads it: a dead step, or the last.
    if (last_use[a.num_inputs + s] <= s) taken &= ~(uint64_t(1) << slot);
  }
  return layout;
}

class Runner {
 public:
  Runner(const PointwiseArgs& a, const Layout& layout, void* scratch)
      : a_(a),
        layout_(layout),
        constants_(static_cast<float*>(scratch)),
        slots_(constants_ + kConstantBytes / sizeof(float)) {
    float* next = constants_;
    for (int s = 0; s < a.num_steps; ++s)
      for (float constant : a.steps[s].constants) {
        store(next, splat(constant));
        next += kLanes;
      }
    for (auto& kept : kept_) kept = {nullptr, 0, 0};
  }

  void run(int64_t begin, int64_t end) {
    PointwiseTile tile(layout_.walk, begin);
    for (int64_t index = begin; index < end; ++index) {
      const PointwiseTile current = tile;
      tile.next(layout_.walk);
      if (layout_.walk.square && index + 1 < end) fetch_ahead(tile);
      run_split(current);
    }
  }

 private:
  struct Kept {
    const char* from;
    int64_t rows, columns;
  };

  void run_split(PointwiseTile tile) {
    const int64_t whole = tile.columns / kLanes * kLanes;
    if (tile.rows > 1 || whole == 0 || whole == tile.columns) return run(tile);
    // One row: what is left of the last vector goes by itself, so that the others needn't be copied.
    const int64_t rest = tile.columns - whole;
    tile.columns = whole;
    run(tile);
    for (int t = 0; t < layout_.walk.tensors; ++t) tile.offsets[t] += whole * column_stride(t);
    tile.columns = rest;
    run(tile);
  }

  // Columns that lie apart are in as many pages, which no hardware prefetcher follows.
  void fetch_ahead(const PointwiseTile& tile) const {
    for (int k = 0; k < a_.num_inputs; ++k)
      if (layout_.read[k]) fetch_columns(k, tile);
  }

  void fetch_columns(int k, const PointwiseTile& tile) const {
    const int64_t apart = column_stride(k + 1), size = a_.inputs[k].dtype == DType::kFloat32 ? 4 : 2;
    if (apart == 0 || apart == 1 || row_stride(k + 1) != 1) return;
    const char* from = static_cast<const char*>(a_.inputs[k].data) + tile.offsets[k + 1] * size;
    for (int64_t c = 0; c < tile.columns; ++c)
      for (int64_t byte = 0; byte < tile.rows * size; byte += 64)
        __builtin_prefetch(from + c * apart * size + byte);
  }

  int64_t column_stride(int tensor) const { return layout_.walk.strides[tensor][layout_.walk.rank - 1]; }
  int64_t row_stride(int tensor) const {
    return layout_.walk.row_axis < 0 ? 0 : layout_.walk.strides[tensor][layout_.walk.row_axis];
  }
  float* slot(int index) const { return slots_ + index * layout_.walk.room; }

  // Whole vectors one after the other.
  bool contiguous(int tensor, const PointwiseTile& tile) const {
    return tile.rows * tile.columns % kLanes == 0 && column_stride(tensor) == 1 &&
           (tile.rows == 1 || row_stride(tensor) == tile.columns);
  }

  void run(const PointwiseTile& tile) {
    if (a_.num_steps == 0 && a_.inputs[0].dtype == a_.out.dtype && column_stride(0) == 1 &&
        column_stride(1) == 1)
      return move_rows(tile);
    for (int k = 0; k < a_.num_inputs; ++k)
      if (layout_.read[k]) values_[k] = input(k, tile);
    const bool in_place = contiguous(0, tile);
    if (a_.num_steps == 0) return copy(tile, in_place);
    const int64_t padded = blocks_of(tile.rows * tile.columns, kLanes) * kLanes;
    for (int s = 0; s < a_.num_steps; ++s) {
      Operand operands[PointwiseArgs::kMaxOperands];
      operands_of_step(s, operands);
      const PointwiseStep kind = a_.steps[s].kind;
      if (s == a_.num_steps - 1 && in_place) {
        return a_.out.dtype == DType::kFloat32
                   ? run_step(kind, operands, static_cast<float*>(a_.out.data) + tile.offsets[0], padded)
                   : run_step(kind, operands, static_cast<uint16_t*>(a_.out.data) + tile.offsets[0], padded);
      }
      float* result = slot(layout_.slots[s]);
      run_step(kind, operands, result, padded);
      values_[a_.num_inputs + s] = {result, 1, DType::kFloat32};
    }
    write(slot(layout_.slots[a_.num_steps - 1]), tile);
  }

  void operands_of_step(int s, Operand* operands) const {
    const PointwiseArgs::Step& step = a_.steps[s];
    for (int i = 0; i < PointwiseArgs::kMaxOperands; ++i) {
      const int value = step.values[i];
      operands[i] = value >= 0 ? values_[value]
                               : Operand{constants_ + (s * PointwiseArgs::kMaxOperands + i) * kLanes, 0,
                                         DType::kFloat32};
    }
  }

  // The input's elements where they lie, or a copy of them. One that is read again for the next tile, as a
  // bias is, is kept.
  Operand input(int k, const PointwiseTile& tile) {
    const StridedView& view = a_.inputs[k];
    const int64_t size = view.dtype == DType::kFloat32 ? 4 : 2, step = column_stride(k + 1);
    const char* from = static_cast<const char*>(view.data) + tile.offsets[k + 1] * size;
    if (contiguous(k + 1, tile)) return {from, 1, view.dtype};
    const bool one = step == 0 && (tile.rows == 1 || row_stride(k + 1) == 0);
    const Operand copied{slot(k), one ? 0 : 1, DType::kFloat32};
    if (kept_[k].from == from && kept_[k].rows == tile.rows && kept_[k].columns == tile.columns)
      return copied;
    kept_[k] = {from, tile.rows, tile.columns};
    if (view.dtype == DType::kFloat32) {
      read(reinterpret_cast<const float*>(from), k, one, tile);
    } else {
      read(reinterpret_cast<const uint16_t*>(from), k, one, tile);
    }
    return copied;
  }

  template <class T>
  void read(const T* from, int k, bool one, const PointwiseTile& tile) {
    if (one) return store(slot(k), splat(to_float(*from)));
    read_tile(from, row_stride(k + 1), column_stride(k + 1), slot(k), tile.rows, tile.columns);
  }

  void write(const float* from, const PointwiseTile& tile) {
    if (a_.out.dtype == DType::kFloat32) {
      write_tile(from, static_cast<float*>(a_.out.data) + tile.offsets[0], row_stride(0), column_stride(0),
                 tile.rows, tile.columns);
    } else {
      write_tile(from, static_cast<uint16_t*>(a_.out.data) + tile.offsets[0], row_stride(0), column_stride(0),
                 tile.rows, tile.columns);
    }
  }

  template <class T>
  void copy_to(T* out, int64_t count) {
    with_reader(values_[0], [=](auto from) {
      for (int64_t i = 0; i < count; i += kLanes) store(out + i, from.at(i));
    });
  }

  void copy(const PointwiseTile& tile, bool in_place) {
    const int64_t count = tile.rows * tile.columns;
    const Operand& value = values_[0];
    if (!in_place) {
      if (value.dtype == DType::kFloat32 && value.step == 1)
        return write(static_cast<const float*>(value.data), tile);
      copy_to(slot(1), blocks_of(count, kLanes) * kLanes);
      return write(slot(1), tile);
    }
    if (a_.out.dtype == DType::kFloat32) {
      copy_to(static_cast<float*>(a_.out.data) + tile.offsets[0], count);
    } else {
      copy_to(static_cast<uint16_t*>(a_.out.data) + tile.offsets[0], count);
    }
  }

  // A copy as it is.
  void move_rows(const PointwiseTile& tile) const {
    const int64_t size = a_.out.dtype == DType::kFloat32 ? 4 : 2;
    char* to = static_cast<char*>(a_.out.data) + tile.offsets[0] * size;
    const char* from = static_cast<const char*>(a_.inputs[0].data) + tile.offsets[1] * size;
    const int64_t to_next = row_stride(0) * size, from_next = row_stride(1) * size;
    for (int64_t r = 0; r < tile.rows; ++r, to += to_next, from += from_next)
      std::memmove(to, from, size_t(tile.columns * size));
  }

  const PointwiseArgs& a_;
  const Layout& layout_;
  float* constants_;
  float* slots_;
  Operand values_[kValues];
  Kept kept_[PointwiseArgs::kMaxInputs];
};

// Elements worth waking a thread for: transcendental steps take about as long as three passes over memory.
int64_t grain_of(const PointwiseArgs& a) {
  int64_t work = 1;
  for (int s = 0; s < a.num_steps; ++s) work += is_long(a.steps[s].kind) ? 3 : 0;
  return PointwiseArgs::kGrain / work;
}

}  // namespace

void pointwise(const PointwiseArgs& a) {
  for (int axis = 0; axis < a.rank; ++axis)
    if (a.shape[axis] == 0) return;
  const Layout layout = layout_of(a);
  const int slots = larger(layout.num_slots, 2);
  const size_t bytes = kConstantBytes + size_t(slots * layout.walk.room) * sizeof(float);
  const int64_t size = layout.walk.tile_rows * layout.walk.tile_columns;
  parallel_for(layout.walk.tiles, blocks_of(grain_of(a), size), a.threads, [&](int64_t begin, int64_t end) {
    Runner runner(a, layout, scratch(bytes));
    runner.run(begin, end);
  });
}

}  // namespace aigc::AIGC_ISA
