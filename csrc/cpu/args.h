// Arguments of every native CPU kernel: plain structs of pointers, sizes and strides (in elements).
#pragma once

#include <cstdint>

namespace aigc {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };  // int8: rows of a weight to pack

enum class Activation : int32_t { kNone, kRelu, kLeakyRelu, kSilu, kGelu, kGeluTanh, kTanh, kSigmoid };

// out = clamp(act(x + bias[channel]) * gain); x viewed as (outer, channels, inner).
struct BiasActArgs {
  const void* x;
  const void* bias;  // may be null
  void* out;
  int64_t outer, channels, inner;
  DType dtype;
  Activation act;
  float slope, gain, clamp;  // clamp < 0: none
  int threads;
};

// Steps of a pointwise program and how many operands each takes.
#define AIGC_POINTWISE_STEPS(X) \
  X(abs, 1)                     \
  X(cos, 1)                     \
  X(exp, 1)                     \
  X(gelu, 1)                    \
  X(gelu_tanh, 1)               \
  X(log, 1)                     \
  X(neg, 1)                     \
  X(reciprocal, 1)              \
  X(relu, 1)                    \
  X(rsqrt, 1)                   \
  X(sigmoid, 1)                 \
  X(silu, 1)                    \
  X(sin, 1)                     \
  X(sqrt, 1)                    \
  X(square, 1)                  \
  X(tanh, 1)                    \
  X(add, 2)                     \
  X(div, 2)                     \
  X(leaky_relu, 2)              \
  X(maximum, 2)                 \
  X(minimum, 2)                 \
  X(mul, 2)                     \
  X(sub, 2)                     \
  X(clamp, 3)                   \
  X(mul_add, 3)                 \
  X(where, 3)

enum class PointwiseStep : int8_t {
#define AIGC_STEP(name, operands) name,
  AIGC_POINTWISE_STEPS(AIGC_STEP)
#undef AIGC_STEP
};

// A tensor's memory; strides in elements, 0 along axes that it's repeated over.
constexpr int kMaxRank = 8;
struct StridedView {
  void* data;
  int64_t strides[kMaxRank];
  DType dtype;
};

// out = the value of the last step, or of the first input where there are no steps. Value k is input k, or
// the result of step k - num_inputs. `out` may be an input, but not overlap one in another way.
struct PointwiseArgs {
  static constexpr int kMaxInputs = 8, kMaxSteps = 24, kMaxOperands = 3;
  static constexpr int64_t kGrain = 32768;  // elements worth waking a thread for
  struct Step {
    PointwiseStep kind;
    int8_t values[kMaxOperands];  // -1: the constant of that place
    float constants[kMaxOperands];
  };
  StridedView out, inputs[kMaxInputs];
  int num_inputs, num_steps, rank;
  int64_t shape[kMaxRank];
  Step steps[kMaxSteps];
  int threads;
};

// out (batch, channels, out_height, out_width) of x (batch, channels, height, width), strides in that order.
// Either the channels of both are contiguous, or the columns of both.
struct ResizeArgs {
  const void* x;
  void* out;
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t x_strides[4], out_strides[4];
  bool bilinear, align_corners;
  DType dtype;
  int threads;
};

// out (count, row_bytes) = the rows of weight, row_pitch bytes apart, that `indices` names: int64 if `wide`,
// else int32.
struct EmbeddingArgs {
  const void* indices;
  const void* weight;
  void* out;
  int64_t count, rows, row_bytes, row_pitch;
  bool wide;
  int threads;
};

// How the products of a packed weight are made (see csrc/cpu/product.h).
enum class Product : int32_t { kFloat32, kBFloat16, kSplit, kInt8 };

// Gated activations pair a panel of the first half of the weight's columns with one of the second; each half
// is then a multiple of 16 columns.
enum class Gating : int32_t { kNone, kGeglu, kSwiglu };

// What becomes of a sum: y = act(sum + bias + sample_bias[sample]) * gate + residual, in `dtype`. Row m
// belongs to sample m / rows_per_sample.
struct EpilogueArgs {
  const void* bias;         // (columns), twice as many when gated; may be null
  const void* sample_bias;  // a sample each; may be null
  const void* gate;         // a row each, or a sample each; may be null
  const void* residual;     // may be null
  void* out;
  int64_t gate_stride, residual_stride, out_stride;  // between rows (gate: or samples)
  int64_t sample_bias_stride;                        // between samples
  int64_t rows_per_sample, columns;
  bool gate_per_sample;
  DType dtype;
  Activation act;
  Gating gating;
  float slope;
  // Of int8 weights: each column's scale and its sum, both up to the end of the last panel.
  const float* scales;
  const int32_t* column_sums;
};

// Packs weight (columns, depth), row-major, into panels of 16 columns. Missing columns and depth become zero.
struct PackWeightArgs {
  const void* weight;
  void* packed;
  int64_t columns, depth;
  DType dtype;
  Product product;
  int threads;
};

// out (rows, columns) of x (rows, depth) times a packed weight.
struct LinearArgs {
  const void* x;
  int64_t x_stride;  // between rows
  const void* weight;
  int64_t rows, depth;
  Product product;
  EpilogueArgs epilogue;
  int threads;
};

// Convolution of channels-last inputs, concatenated by channel and then enlarged by repeating each pixel
// `upsample` times each way, with a weight packed group by group over (tap row, tap column, channel). Result
// (b, y, x) is row place[0] + b place[1] + y place[2] + x place[3] of the epilogue's. Depthwise: `groups` is
// the number of channels, the weight one matrix (channels, taps), packed for float32 products.
struct ConvArgs {
  const void* inputs[2];  // the second may be null
  int64_t channels[2];    // of each
  int64_t strides[2][3];  // of batch, row and column; channels are contiguous
  const void* weight;
  int64_t batch, height, width;  // of the enlarged input
  int64_t out_height, out_width;
  int64_t taps[2], stride[2], dilation[2];  // row, column
  int64_t padding[2];                       // above and left; what lies outside is zero
  int64_t upsample, groups;
  int64_t place[4];
  Product product;
  EpilogueArgs epilogue;  // columns: of all groups
  int threads;
};

enum class MaskKind : int32_t { kNone, kBool, kAdded };

// An operand of attention: (batch, heads, rows, head_dim); a row is contiguous.
struct HeadsView {
  void* data;
  int64_t batch_stride, head_stride, row_stride;
};

// out = softmax(scale q k^T + mask) v. Queries come in `heads` heads, keys and values in kv_heads, each of
// which serves heads / kv_heads neighbouring ones. The workspace is as large as attention_workspace()
// of csrc/cpu/attention.h says.
struct AttentionArgs {
  HeadsView q, k, v, out;
  const void* mask;         // bytes (kBool) or of `dtype` (kAdded)
  int64_t mask_strides[4];  // batch, head, query, key (0 or 1)
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch, heads, kv_heads, queries, keys, head_dim;
  double scale;
  MaskKind mask_kind;
  bool causal;
  DType dtype;
  Product product;
  int threads;
};

// What a benchmark is held against: `rounds` of a loop that does nothing else, on each of `threads`.
enum class CeilingLoop : int32_t { kRead, kFma, kDotBf16, kDotInt8, kTileBf16, kTileInt8 };

struct CeilingArgs {
  CeilingLoop loop;
  const void* data;  // kRead: what is read
  int64_t bytes;     // of it
  int64_t rounds;
  double* done;  // operations (products and additions) or bytes; 0 where the level lacks the loop
  int threads;
};

// A setting with one value for all rows, or one for each.
template <class T>
struct PerRow {
  const T* values;  // null: `value` for all
  T value;
  // Forced inline: a weak copy compiled for one ISA level would be linked into the others.
  __attribute__((always_inline)) T at(int64_t row) const { return values ? values[row] : value; }
};

// x (rows, C), C = heads * head_dim, goes through every block of a decoder-only transformer, in place.
constexpr int kDecoderWeights = 12;
struct DecoderStepArgs {
  float* x;
  const float* keys;  // (layers, rows, heads, capacity, head_dim), lengths[row] positions of which count
  const float* values;
  const int64_t* lengths;
  const float* phases;  // (rows, head_dim / 2, 2): cosine and sine; may be null
  // Per layer: norm, query-key-value, output, norm, up, down; each a weight and its bias, which may be null.
  // A norm without bias is an RMS norm. up_width is 2 down_width for SwiGLU, down_width for GELU.
  const float* const* weights;
  float* new_keys;  // (layers, rows, heads, head_dim)
  float* new_values;
  float* scratch;  // rows * (5 C + up_width + heads * (capacity + 1))
  int64_t layers, rows, heads, head_dim, capacity, up_width, down_width;
  float eps;
  int threads;
};

constexpr int64_t kBadLogits = -1, kBadPrevious = -2;

// tokens[row]: drawn from row `row` of logits (rows, vocabulary), or kBadLogits, kBadPrevious.
struct SampleTokenArgs {
  const void* logits;
  const float* uniform;
  int64_t* tokens;
  float* scratch;  // (rows, 2, vocabulary)
  int64_t rows, vocabulary, row_stride;
  DType dtype;
  PerRow<float> temperature, top_p, min_p, penalty;
  PerRow<int64_t> top_k;
  const int64_t* previous;  // (rows, previous_width); may be null
  const int64_t* lengths;   // may be null
  int64_t previous_width;
  int threads;
};

// out (rows, count) = standard normals; row b is keyed by seeds[b].
struct PhiloxNormalArgs {
  const int64_t* seeds;
  void* out;
  int64_t rows, count;
  uint64_t stream;
  DType dtype;
  int threads;
};

// out (rows) = one uniform number in [0, 1) per seed.
struct PhiloxUniformArgs {
  const int64_t* seeds;
  float* out;
  int64_t rows;
  uint64_t stream;
};

// out[b] = sum_j coefficients[b, j] terms[j][b] + noise_scale[b] z(seeds[b], streams[b]). Terms whose
// coefficient is zero aren't read. `out` may be a term.
struct LinearUpdateArgs {
  static constexpr int kMaxTerms = 8;
  // Elements worth waking a thread for, without noise and with it: some 10 us of either.
  static constexpr int64_t kGrain = 65536, kNoiseGrain = 8192;
  const void* terms[kMaxTerms];
  int64_t term_strides[kMaxTerms];  // between rows; a row is contiguous
  int num_terms;
  void* out;
  int64_t out_stride;
  const float* coefficients;  // (rows, num_terms)
  const float* noise_scale;   // (rows), or null; then seeds and streams too
  const int64_t* seeds;
  const int64_t* streams;
  uint8_t* not_finite;  // (rows), set to 1 where a row got NaN or infinity; may be null
  int64_t rows, count;
  DType dtype;
  int threads;
};

// out = (x - mean) / sqrt(variance + eps) * weight + bias over groups of channels, then silu when asked for.
// x is (batch, channels, inner), or (batch, inner, channels) when channels_last.
struct GroupNormArgs {
  const void* x;
  const void* weight;  // (channels); may be null
  const void* bias;    // (channels); may be null
  void* out;
  float* workspace;  // group_norm_workspace() of them
  int64_t batch, channels, inner, groups;
  bool channels_last, silu;
  DType dtype, out_dtype;  // out_dtype: dtype, or bfloat16
  float eps;
  int threads;
};

// layer_norm: the same over each of `rows` contiguous rows of `width` elements, then * (1 + scale) + shift
// with one of each for every `rows_per_sample` rows; rms_norm: without mean, bias, scale and shift.
struct LayerNormArgs {
  const void* x;
  const void* weight;  // (width); may be null
  const void* bias;    // (width); may be null
  const void* scale;   // (samples, width) with scale_stride; may be null
  const void* shift;   // (samples, width) with shift_stride; may be null
  void* out;
  int64_t rows, width, rows_per_sample, scale_stride, shift_stride;
  DType dtype, out_dtype;  // out_dtype: dtype, or bfloat16
  float eps;
  int threads;
};

// out (rows, width) = act(gate) * value, the two halves of x (rows, 2 width).
struct GluArgs {
  const void* x;
  void* out;
  int64_t rows, width;
  DType dtype;
  Activation act;
  bool gate_first;
  int threads;
};

}  // namespace aigc
