// One token a row through all blocks of a decoder-only transformer: the steps of ops/decoder.py.
//
// Bound by memory: every weight is read once for up to four rows. An output is the product of its row of
// weights with its row of input, in sixteen lanes from the first element to the last, whatever else is
// computed beside it, so that a row's bits depend on neither the batch nor the threads.
#include "cpu/activation.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {

void layer_norm(const LayerNormArgs&);
void rms_norm(const LayerNormArgs&);

namespace {

constexpr int64_t kGrain = 1 << 17;  // products worth waking a thread for
constexpr int kAccumulators = 8 / kParts > 4 ? 8 / kParts : 4;

// sums[r][o] of kRows rows of x and kOutputs rows of w, each `width` long.
template <int kRows, int kOutputs>
AIGC_INLINE void dots(const float* x, const float* w, int64_t width, float (*sums)[kOutputs]) {
  Vec acc[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) acc[r][o] = splat(0.0f);
  const auto add = [&](auto read, int64_t i) __attribute__((always_inline)) {
    Vec rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = read(x + r * width + i);
    for (int o = 0; o < kOutputs; ++o) {
      const Vec weight = read(w + o * width + i);
      for (int r = 0; r < kRows; ++r) acc[r][o] = acc[r][o] + weight * rows[r];
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) add([](const float* p) { return load(p); }, i);
  if (i < width) {
    const int n = int(width - i);
    add([n](const float* p) { return load_n(p, n); }, i);
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) sums[r][o] = sum(acc[r][o]);
}

// out (rows, outputs) = x (rows, width) w^T + bias, added to what `out` holds if `residual`.
struct Linear {
  const float *x, *w, *bias;
  float* out;
  int64_t rows, width, outputs;
  bool residual;

  template <int kRows, int kOutputs>
  AIGC_MEMBER void tile(int64_t row, int64_t output) const {
    float sums[kRows][kOutputs];
    dots<kRows, kOutputs>(x + row * width, w + output * width, width, sums);
    for (int r = 0; r < kRows; ++r) {
      for (int o = 0; o < kOutputs; ++o) {
        float value = sums[r][o];
        if (bias) value += bias[output + o];
        float* to = out + (row + r) * outputs + output + o;
        *to = residual ? *to + value : value;
      }
    }
  }

  template <int kOutputs>
  AIGC_MEMBER void columns(int64_t output) const {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) tile<4, kOutputs>(row, output);
    for (; row < rows; ++row) tile<1, kOutputs>(row, output);
  }

  void run(int threads) const {
    constexpr int kOutputs = kAccumulators / 2;
    const int64_t grain = kGrain / (width * rows * kOutputs) + 1;
    const int64_t tiles = (outputs + kOutputs - 1) / kOutputs;
    parallel_for(tiles, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = t * kOutputs;
        if (first + kOutputs <= outputs) {
          columns<kOutputs>(first);
        } else {
          for (int64_t o = first; o < outputs; ++o) columns<1>(o);
        }
      }
    });
  }
};

AIGC_INLINE float dot(const float* a, const float* b, int64_t n) {
  float result[1][1];
  dots<1, 1>(a, b, n, result);
  return result[0][0];
}

// Multiplies pairs (x_2j, x_2j+1) by the phases (cos, sin).
//
// GCC 12 turns alternating subtractions and additions of products into vfmaddsub in spite of
// -ffp-contract=off, which rounds differently from the portable level; a product that passes through memory
// is rounded first.
void rotate(float* x, const float* phases, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const float re = x[i], im = x[i + 1], c = phases[i], s = phases[i + 1];
    float turned = im * s;
    asm volatile("" : "+m"(turned));
    x[i] = re * c - turned;
    x[i + 1] = re * s + im * c;
  }
}

// Softmax of n scores in place, without the division; returns their sum.
float exponentials(float* scores, int64_t n) {
  float largest = scores[0];
  for (int64_t s = 1; s < n; ++s) largest = scores[s] > largest ? scores[s] : largest;
  Vec total = splat(0.0f);
  int64_t s = 0;
  for (; s + kLanes <= n; s += kLanes) {
    const Vec e = vexp(load(scores + s) - largest);
    store(scores + s, e);
    total = total + e;
  }
  if (s < n) {
    store_n(scores + s, vexp(load_n(scores + s, int(n - s)) - largest), int(n - s));
    total = total + load_n(scores + s, int(n - s));
  }
  return sum(total);
}

struct Step {
  const DecoderStepArgs& a;
  int64_t width = a.heads * a.head_dim;
  // Scratch, row by row: the normalised input, q k v, the mixture of heads, the MLP's inside, and the scores.
  float* normed = a.scratch;
  float* qkv = normed + a.rows * width;
  float* mixed = qkv + a.rows * 3 * width;
  float* inside = mixed + a.rows * width;
  float* scores = inside + a.rows * a.up_width;

  void norm(const float* weight, const float* bias) const {
    LayerNormArgs args{};
    args.x = a.x, args.weight = weight, args.bias = bias, args.out = normed;
    args.rows = args.rows_per_sample = a.rows, args.width = width;
    args.eps = a.eps, args.threads = a.threads;
    bias ? layer_norm(args) : rms_norm(args);
  }

  // Head n of row b: the new key and value are stored, and mixed[b, n] attends to the cache and to them.
  void attend(int64_t layer, int64_t b, int64_t n) const {
    const int64_t D = a.head_dim, at = (layer * a.rows + b) * a.heads + n, length = a.lengths[b];
    float* q = qkv + b * 3 * width + n * D;
    float *k = q + width, *v = k + width;
    if (a.phases) rotate(q, a.phases + b * D, D), rotate(k, a.phases + b * D, D);
    std::memcpy(a.new_keys + at * D, k, size_t(D) * sizeof(float));
    std::memcpy(a.new_values + at * D, v, size_t(D) * sizeof(float));
    const float scale = 1.0f / __builtin_sqrtf(float(D));
    for (int64_t d = 0; d < D; ++d) q[d] *= scale;

    const float *keys = a.keys + at * a.capacity * D, *values = a.values + at * a.capacity * D;
    float* p = scores + (b * a.heads + n) * (a.capacity + 1);
    int64_t s = 0;
    for (; s + 4 <= length; s += 4) dots<1, 4>(q, keys + s * D, D, reinterpret_cast<float(*)[4]>(p + s));
    for (; s < length; ++s) p[s] = dot(q, keys + s * D, D);
    p[length] = dot(q, k, D);
    const float total = exponentials(p, length + 1);

    float* out = mixed + b * width + n * D;
    for (int64_t d = 0; d < D; d += kLanes) {
      const int lanes = D - d < kLanes ? int(D - d) : kLanes;
      const bool whole = lanes == kLanes;
      Vec sum = splat(0.0f);
      for (s = 0; s <= length; ++s) {
        const float* value = s < length ? values + s * D + d : v + d;
        sum = sum + (whole ? load(value) : load_n(value, lanes)) * p[s];
      }
      sum = sum / splat(total);
      whole ? store(out + d, sum) : store_n(out + d, sum, lanes);
    }
  }

  // SwiGLU of (gate, up) into the first half of each row, or GELU in place; rows are then `down_width` apart.
  void activate_rows() const {
    for (int64_t b = 0; b < a.rows; ++b) {
      const float* in = inside + b * a.up_width;
      float* out = inside + b * a.down_width;  // at or before `in`: what it overwrites has been read
      for (int64_t i = 0; i < a.down_width; i += kLanes) {
        const int n = a.down_width - i < kLanes ? int(a.down_width - i) : kLanes;
        const bool whole = n == kLanes;
        Vec x = whole ? load(in + i) : load_n(in + i, n);
        if (a.up_width == a.down_width) {
          x = vgelu_tanh(x);
        } else {
          const float* up = in + a.down_width + i;
          x = vsilu(x) * (whole ? load(up) : load_n(up, n));
        }
        whole ? store(out + i, x) : store_n(out + i, x, n);
      }
    }
  }

  void block(int64_t layer) const {
    const float* const* w = a.weights + layer * kDecoderWeights;
    norm(w[0], w[1]);
    Linear{normed, w[2], w[3], qkv, a.rows, width, 3 * width, false}.run(a.threads);
    const int64_t work = a.capacity * a.head_dim;
    parallel_for(a.rows * a.heads, kGrain / work + 1, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) attend(layer, i / a.heads, i % a.heads);
    });
    Linear{mixed, w[4], w[5], a.x, a.rows, width, width, true}.run(a.threads);
    norm(w[6], w[7]);
    Linear{normed, w[8], w[9], inside, a.rows, width, a.up_width, false}.run(a.threads);
    activate_rows();
    Linear{inside, w[10], w[11], a.x, a.rows, a.down_width, width, true}.run(a.threads);
  }
};

}  // namespace

void decoder_step(const DecoderStepArgs& a) {
  const Step step{a};
  for (int64_t layer = 0; layer < a.layers; ++layer) step.block(layer);
}

}  // namespace aigc::AIGC_ISA
