// The steps of pointwise programs, each a loop over contiguous elements.
#pragma once

#include "cpu/activation.h"
#include "cpu/elementary.h"

namespace aigc::AIGC_ISA {

// NaN where either is, as torch.maximum has it.
AIGC_INLINE Vec vmaximum(Vec a, Vec b) { return select(a == a, vmax(a, b), a); }
AIGC_INLINE Vec vminimum(Vec a, Vec b) { return select(a == a, vmin(a, b), a); }

#define AIGC_UNARY(name, value)                               \
  struct name##_step {                                        \
    AIGC_MEMBER Vec operator()(Vec a) const { return value; } \
  };
#define AIGC_TWO(name, value)                                        \
  struct name##_step {                                               \
    AIGC_MEMBER Vec operator()(Vec a, Vec b) const { return value; } \
  };
#define AIGC_THREE(name, value)                                             \
  struct name##_step {                                                      \
    AIGC_MEMBER Vec operator()(Vec a, Vec b, Vec c) const { return value; } \
  };
AIGC_UNARY(abs, vabs(a))
AIGC_UNARY(cos, vsin(a, 1))
AIGC_UNARY(exp, vexp_full(a))
AIGC_UNARY(gelu, vgelu(a))
AIGC_UNARY(gelu_tanh, vgelu_tanh(a))
AIGC_UNARY(log, vlog(a))
AIGC_UNARY(neg, -a)
AIGC_UNARY(reciprocal, splat(1.0f) / a)
AIGC_UNARY(relu, select(a < splat(0.0f), splat(0.0f), a))
AIGC_UNARY(rsqrt, splat(1.0f) / vsqrt(a))
AIGC_UNARY(sigmoid, vsigmoid(a))
AIGC_UNARY(silu, vsilu(a))
AIGC_UNARY(sin, vsin(a, 0))
AIGC_UNARY(sqrt, vsqrt(a))
AIGC_UNARY(square, a* a)
AIGC_UNARY(tanh, vtanh(a))
AIGC_TWO(add, a + b)
AIGC_TWO(div, a / b)
AIGC_TWO(leaky_relu, select(a > splat(0.0f), a, a* b))
AIGC_TWO(maximum, vmaximum(a, b))
AIGC_TWO(minimum, vminimum(a, b))
AIGC_TWO(mul, a* b)
AIGC_TWO(sub, a - b)
AIGC_THREE(clamp, vminimum(vmaximum(a, b), c))
AIGC_THREE(mul_add, a* b + c)
AIGC_THREE(where, select(a == splat(0.0f), c, b))
#undef AIGC_UNARY
#undef AIGC_TWO
#undef AIGC_THREE

// A value of a tile: contiguous elements, or (step 0) sixteen alike that are read again and again.
struct Operand {
  const void* data;
  int64_t step;  // 0 or 1
  DType dtype;
};

template <class T>
struct Reader {
  const T* data;
  int64_t step;
  AIGC_MEMBER explicit Reader(const Operand& o) : data(static_cast<const T*>(o.data)), step(o.step) {}
  AIGC_MEMBER Vec at(int64_t i) const { return load(data + i * step); }
};

// Calls f with a Reader of the operand's type.
template <class F>
AIGC_INLINE void with_reader(const Operand& o, const F& f) {
  if (o.dtype == DType::kFloat32) {
    f(Reader<float>(o));
  } else {
    f(Reader<uint16_t>(o));
  }
}

template <class S, class O>
AIGC_INLINE void run_step_1(const Operand* in, O* out, int64_t count) {
  with_reader(in[0], [=](auto a) {
    for (int64_t i = 0; i < count; i += kLanes) store(out + i, S()(a.at(i)));
  });
}

template <class S, class O>
AIGC_INLINE void run_step_2(const Operand* in, O* out, int64_t count) {
  with_reader(in[0], [=](auto a) {
    with_reader(in[1], [=](auto b) {
      for (int64_t i = 0; i < count; i += kLanes) store(out + i, S()(a.at(i), b.at(i)));
    });
  });
}

template <class S, class O>
AIGC_INLINE void run_step_3(const Operand* in, O* out, int64_t count) {
  with_reader(in[0], [=](auto a) {
    with_reader(in[1], [=](auto b) {
      with_reader(in[2], [=](auto c) {
        for (int64_t i = 0; i < count; i += kLanes) store(out + i, S()(a.at(i), b.at(i), c.at(i)));
      });
    });
  });
}

// `count` elements, a multiple of sixteen; `out` may be an operand.
template <class O>
void run_step(PointwiseStep kind, const Operand* in, O* out, int64_t count) {
  switch (kind) {
#define AIGC_CASE(name, operands) \
  case PointwiseStep::name:       \
    return run_step_##operands<name##_step>(in, out, count);
    AIGC_POINTWISE_STEPS(AIGC_CASE)
#undef AIGC_CASE
  }
}

// Steps that take as long as a pass over memory or longer.
constexpr bool is_long(PointwiseStep kind) {
  switch (kind) {
    case PointwiseStep::cos:
    case PointwiseStep::exp:
    case PointwiseStep::gelu:
    case PointwiseStep::gelu_tanh:
    case PointwiseStep::log:
    case PointwiseStep::sigmoid:
    case PointwiseStep::silu:
    case PointwiseStep::sin:
    case PointwiseStep::tanh:
      return true;
    default:
      return false;
  }
}

}  // namespace aigc::AIGC_ISA
