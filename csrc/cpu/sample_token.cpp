// One token per row from softmax(logits / T) cut by top-k, top-p and min-p: the steps of ops/decode.py, with
// its bits.
//
// Weights are integers in units of 2^-36 of the largest, so sums are exact in any order. Top-k and top-p find
// their threshold by a radix select over the floats' bits: three histograms of 2,048 buckets instead of a
// sort.
#include "cpu/vec.h"
#include "runtime/thread_pool.h"

namespace aigc::AIGC_ISA {
namespace {

constexpr float kWeightScale = 68719476736.0f;  // 2^36
constexpr int kBuckets = 2048;
constexpr int kBits[] = {11, 11, 10};

AIGC_INLINE int64_t units(float weight) { return int64_t(weight * kWeightScale); }

// Unsigned integers in the order of the floats (-0 below +0, which no caller here can tell apart).
AIGC_INLINE uint32_t ordered(float f) {
  if (f == 0.0f) f = 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

struct Cut {
  uint32_t key;   // of the last element kept
  double before;  // mass of the elements above it
};

// The element at which the running mass, from the largest down, first reaches `target`; key 0 if it never
// does.
template <class Mass>
Cut select_from_top(const float* x, int64_t n, double target, const Mass& mass) {
  int64_t histogram[kBuckets];
  uint32_t prefix = 0;
  int64_t before = 0;
  int shift = 32;
  for (int bits : kBits) {
    const uint32_t above = shift == 32 ? 0u : prefix >> shift;
    shift -= bits;
    std::memset(histogram, 0, sizeof histogram);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = ordered(x[i]);
      if (shift + bits == 32 || key >> (shift + bits) == above) {
        histogram[(key >> shift) & ((1u << bits) - 1)] += mass(x[i]);
      }
    }
    int bucket = (1 << bits) - 1;
    while (bucket >= 0 && double(before + histogram[bucket]) < target) before += histogram[bucket--];
    if (bucket < 0) return {0, double(before)};
    prefix |= uint32_t(bucket) << shift;
  }
  return {prefix, double(before)};
}

void keep_top_k(const float* x, float* weights, int64_t n, int64_t k) {
  const Cut cut = select_from_top(x, n, double(k), [](float) { return int64_t(1); });
  for (int64_t i = 0; i < n; ++i)
    if (ordered(x[i]) < cut.key) weights[i] = 0.0f;
}

int64_t total_units(const float* weights, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += units(weights[i]);
  return total;
}

void keep_top_p(float* weights, int64_t n, float p) {
  const double target = double(p) * double(total_units(weights, n));
  const Cut cut = select_from_top(weights, n, target, [](float w) { return units(w); });
  int64_t before = int64_t(cut.before);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = ordered(weights[i]);
    if (key > cut.key) continue;
    if (key == cut.key && double(before) < target) {  // ties: the lower indices, while mass is wanted
      before += units(weights[i]);
    } else {
      weights[i] = 0.0f;
    }
  }
}

struct Row {
  float temperature, top_p, min_p, penalty;
  int64_t top_k;
};

AIGC_INLINE Row row_of(const SampleTokenArgs& a, int64_t row) {
  return {a.temperature.at(row), a.top_p.at(row), a.min_p.at(row), a.penalty.at(row), a.top_k.at(row)};
}

template <class T>
bool penalise(const SampleTokenArgs& a, int64_t row, const T* logits, float penalty, float* x) {
  const int64_t count = a.lengths ? a.lengths[row] : a.previous_width;
  const int64_t* previous = a.previous + row * a.previous_width;
  for (int64_t j = 0; j < count && j < a.previous_width; ++j) {
    const int64_t token = previous[j];
    if (token < 0 || token >= a.vocabulary) return false;
    const float logit = to_float(logits[token]);  // not x[token]: a token may come twice
    x[token] = logit < 0.0f ? logit * penalty : logit / penalty;
  }
  return true;
}

int64_t draw(const float* weights, int64_t n, float uniform) {
  const double target = double(uniform) * double(total_units(weights, n));
  int64_t mass = 0;
  for (int64_t i = 0; i < n; ++i) {
    mass += units(weights[i]);
    if (double(mass) > target) return i;
  }
  return 0;  // as the reference: no index passes when uniform >= 1
}

template <class T>
int64_t sample_row(const SampleTokenArgs& a, int64_t row, float* x, float* weights) {
  const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
  const int64_t n = a.vocabulary;
  const Row settings = row_of(a, row);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(logits + i));
  for (; i < n; ++i) x[i] = to_float(logits[i]);
  if (a.previous && !penalise(a, row, logits, settings.penalty, x)) return kBadPrevious;

  float largest = -__builtin_inff();
  int64_t best = 0;
  for (i = 0; i < n; ++i) {
    if (x[i] != x[i]) return kBadLogits;
    if (x[i] > largest) largest = x[i], best = i;
  }
  if (largest - largest != 0.0f) return kBadLogits;
  if (!(settings.temperature > 0.0f)) return best;

  const Vec top = splat(largest), temperature = splat(settings.temperature);
  for (i = 0; i + kLanes <= n; i += kLanes) store(weights + i, vexp((load(x + i) - top) / temperature));
  if (i < n) store_n(weights + i, vexp((load_n(x + i, int(n - i)) - top) / temperature), int(n - i));

  if (settings.top_k > 0 && settings.top_k < n) keep_top_k(x, weights, n, settings.top_k);
  if (settings.top_p < 1.0f) keep_top_p(weights, n, settings.top_p);
  for (i = 0; i < n; ++i)
    if (weights[i] < settings.min_p) weights[i] = 0.0f;
  return draw(weights, n, a.uniform[row]);
}

constexpr int64_t kGrain = 4096;  // logits worth waking a thread for

template <class T>
void run(const SampleTokenArgs& a) {
  parallel_for(a.rows, kGrain / a.vocabulary + 1, a.threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* scratch = a.scratch + row * 2 * a.vocabulary;
      a.tokens[row] = sample_row<T>(a, row, scratch, scratch + a.vocabulary);
    }
  });
}

}  // namespace

void sample_token(const SampleTokenArgs& a) {
  if (a.dtype == DType::kFloat32) {
    run<float>(a);
  } else {
    run<uint16_t>(a);
  }
}

}  // namespace aigc::AIGC_ISA
