// 3 x 3 convolution at stride 1 with 4 products per output instead of 9: Winograd's F(2 x 2, 3 x 3).
//
// y = A'((G w G') . (B' x B)) A for each tile of 2 x 2 outputs, x the 4 x 4 inputs under it. The elementwise
// product, summed over channels, is 16 matrix products (tiles, channels) x (channels, outputs). B and A hold
// zeros and ones of either sign, G halves besides, so integers stay exact, and the error is below that of a
// sum of 9 times as many products. The weight comes as its 16 matrices, packed one after the other.
//
// Napkin maths, a tile of 64 channels and outputs: 16 x 64 x 4 FMAs against 36 x 64 x 4; for them 4 x 64
// loads, additions and stores before and 4 x 50 behind.
//
// Reference: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016,
// https://arxiv.org/abs/1509.09308
#include "cpu/patches.h"

namespace aigc::AIGC_ISA {
namespace {

using P = Float32Product;

constexpr int kSide = 4, kPositions = kSide * kSide;  // of a tile's input
constexpr int kOut = 2, kOutputs = kOut * kOut;

// Lines between positions, so that their strides are no powers of two and 16 of them share no set of L1.
constexpr int64_t kGap = kTileLine;

struct WinogradBlocking {
  int64_t tiles, panels;
  int64_t inputs, sums, outputs, zeros, places, slots;  // bytes of scratch beside each other

  int64_t bytes() const { return inputs + sums + outputs + zeros + places + slots; }
};

class Winograd {
 public:
  explicit Winograd(const ConvArgs& args)
      : a_(args),
        source_(args, 0),
        panels_(panels_of(args.epilogue)),
        depth_(source_.channels / P::kDepth),
        down_(blocks_of(args.out_height, kOut)),
        across_(blocks_of(args.out_width, kOut)),
        tiles_(args.batch * down_ * across_),
        blocking_(choose_blocking()) {}

  void run() const {
    const int64_t ranges = blocks_of(panels_, blocking_.panels), blocks = blocks_of(tiles_, blocking_.tiles);
    parallel_for(blocks * ranges, 1, a_.threads, [&](int64_t begin, int64_t end) {
      Task task{};
      char* room = static_cast<char*>(scratch(size_t(blocking_.bytes())));
      task.inputs = room, room += blocking_.inputs;
      task.sums = reinterpret_cast<float*>(room), room += blocking_.sums;
      task.outputs = reinterpret_cast<float*>(room), room += blocking_.outputs;
      task.zeros = reinterpret_cast<float*>(room), room += blocking_.zeros;
      std::memset(task.zeros, 0, size_t(blocking_.zeros));
      task.places = reinterpret_cast<RowPlace*>(room), room += blocking_.places;
      task.slots = reinterpret_cast<int32_t*>(room);
      int64_t entered = -1;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / ranges, panel = item % ranges * blocking_.panels;
        if (block != entered) enter(task, entered = block);
        const int64_t last = smaller(panel + blocking_.panels, panels_);
        for (int64_t p = panel; p < last; p += kPanels)
          p + 1 < last ? multiply_panels<2>(task, p) : multiply_panels<1>(task, p);
      }
      release_scratch();
    });
  }

 private:
  struct Task {
    char* inputs;      // [position][depth tile][tile][64 bytes]
    float* sums;       // [position][panel][tile][16]
    float* outputs;    // [panel][row][16]
    float* zeros;      // a pixel beside the image
    RowPlace* places;  // of rows
    int32_t* slots;    // [tile][2][2]: the output's row, or one that nobody reads
    int64_t tiles, rows;
  };

  int64_t input_position() const { return depth_ * blocking_.tiles * P::kLeft + kGap; }   // bytes
  int64_t sum_position() const { return kPanels * blocking_.tiles * kLanes + kGap / 4; }  // floats

  // As in gemm.h: estimated cycles of each choice.
  WinogradBlocking choose_blocking() const {
    constexpr int kTiles[] = {8, 16, 24, 32, 48, 64}, kRanges[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32};
    const bool stays = size_t(kPositions * panels_ * depth_ * P::kRight) <= caches().l2 / 2;
    WinogradBlocking best{};
    double least = 0.0;
    for (int tiles : kTiles)
      for (int ranges : kRanges) {
        const int64_t panels = round_up(blocks_of(panels_, ranges), kPanels);
        const WinogradBlocking b{tiles,
                                 panels,
                                 kPositions * (depth_ * tiles * P::kLeft + kGap),
                                 kPositions * (kPanels * tiles * kLanes * 4 + kGap),
                                 (kOutputs * tiles + 1) * kPanels * kLanes * 4,
                                 depth_ * P::kLeft,
                                 kOutputs * tiles * int64_t(sizeof(RowPlace)),
                                 kOutputs * tiles * 4};
        if (size_t(b.bytes()) > caches().l2 / 4 * 3 && best.tiles) continue;
        const double products = double(kPositions * tiles * panels * depth_ * kLanes);
        const double around = double(tiles) * (100.0 * double(depth_) + 80.0 * double(panels));
        const double weight = double(kPositions * panels * depth_ * P::kRight) / (stays ? 32.0 : 8.0);
        const int64_t tasks = blocks_of(tiles_, tiles) * blocks_of(panels_, panels);
        const double cycles = double(blocks_of(tasks, a_.threads)) * (products + around + weight);
        if (best.tiles && cycles >= least) continue;
        best = b, least = cycles;
      }
    return best;
  }

  void enter(Task& task, int64_t block) const {
    const int64_t first = block * blocking_.tiles;
    task.tiles = smaller(blocking_.tiles, tiles_ - first), task.rows = 0;
    for (int64_t t = 0; t < task.tiles; ++t) {
      const int64_t x = (first + t) % across_ * kOut, by = (first + t) / across_;
      const int64_t y = by % down_ * kOut, b = by / down_;
      for (int i = 0; i < kOutputs; ++i) {
        const int64_t row = y + i / kOut, column = x + i % kOut;
        const bool inside = row < a_.out_height && column < a_.out_width;
        task.slots[t * kOutputs + i] = inside ? int32_t(task.rows) : int32_t(kOutputs * blocking_.tiles);
        if (inside)
          task.places[task.rows++] = source_.place((b * a_.out_height + row) * a_.out_width + column);
      }
      const typename PatchSource<P, float>::Pixel pixel{b, y - a_.padding[0], x - a_.padding[1]};
      char* to = task.inputs + t * P::kLeft;
      const int64_t seam = source_.first_channels / P::kDepth;
      transform_pixels(task, pixel, 0, seam, to);
      if (seam < depth_) transform_pixels(task, pixel, seam, depth_, to);
    }
  }

  // Depth tiles [d, end) of one input's 4 x 4 pixels.
  void transform_pixels(const Task& task, const typename PatchSource<P, float>::Pixel& pixel, int64_t d,
                        int64_t end, char* to) const {
    const float* from[kPositions];
    for (int i = 0; i < kPositions; ++i) {
      from[i] = source_.at(pixel, i / kSide, i % kSide, d * P::kDepth);
      if (!from[i]) from[i] = task.zeros;
    }
    for (int64_t k = 0; d < end; ++d, k += P::kDepth)
      transform_input(from, k, to + d * blocking_.tiles * P::kLeft);
  }

  // B' x B of 16 channels.
  AIGC_MEMBER void transform_input(const float* const* from, int64_t k, char* to) const {
    const int64_t position = input_position();
    Vec x[kSide][kSide];
    for (int i = 0; i < kSide; ++i) {
      Vec row[kSide];
      for (int j = 0; j < kSide; ++j) row[j] = load(from[i * kSide + j] + k);
      x[i][0] = row[0] - row[2], x[i][1] = row[1] + row[2];
      x[i][2] = row[2] - row[1], x[i][3] = row[1] - row[3];
    }
    for (int j = 0; j < kSide; ++j) {
      char* at = to + j * position;
      store_bits(at, x[0][j] - x[2][j]);
      store_bits(at + kSide * position, x[1][j] + x[2][j]);
      store_bits(at + 2 * kSide * position, x[2][j] - x[1][j]);
      store_bits(at + 3 * kSide * position, x[1][j] - x[3][j]);
    }
  }

  template <int V>
  void multiply_panels(const Task& task, int64_t p) const {
    const int64_t panel = depth_ * P::kRight, sum_panel = blocking_.tiles * kLanes;
    const int64_t steps = blocks_of(task.tiles, kMostRows);
    for (int q = 0; q < kPositions; ++q) {
      const char* right = static_cast<const char*>(a_.weight) + (q * panels_ + p) * panel;
      const char* left = task.inputs + q * input_position();
      float* sums = task.sums + q * sum_position();
      for (int64_t step = 0, t = 0; step < steps; ++step) {
        const int n = int(task.tiles / steps + (step < task.tiles % steps));
        multiply_few<P, V>(n, left + t * P::kLeft, int64_t(P::kLeft), blocking_.tiles * P::kLeft, right,
                           panel, depth_, 0, sums + t * kLanes, sum_panel, false);
        t += n;
      }
    }
    const int64_t out_panel = (kOutputs * blocking_.tiles + 1) * kLanes;
    for (int v = 0; v < V; ++v)
      for (int64_t t = 0; t < task.tiles; ++t)
        transform_output(task.sums + v * sum_panel + t * kLanes, sum_position(), task.outputs + v * out_panel,
                         task.slots + t * kOutputs);
    finish<float, PlainSums>(a_.epilogue, task.places, int(task.rows), p, V, task.outputs, out_panel);
  }

  // A' m A of 16 outputs.
  AIGC_MEMBER static void transform_output(const float* sums, int64_t position, float* to,
                                           const int32_t* slots) {
    Vec m[kOut][kSide];
    for (int j = 0; j < kSide; ++j) {
      Vec column[kSide];
      for (int i = 0; i < kSide; ++i) column[i] = load(sums + (i * kSide + j) * position);
      m[0][j] = column[0] + column[1] + column[2], m[1][j] = column[1] - column[2] - column[3];
    }
    for (int i = 0; i < kOut; ++i) {
      store(to + slots[i * kOut] * kLanes, m[i][0] + m[i][1] + m[i][2]);
      store(to + slots[i * kOut + 1] * kLanes, m[i][1] - m[i][2] - m[i][3]);
    }
  }

  const ConvArgs& a_;
  const PatchSource<P, float> source_;
  int64_t panels_, depth_;  // depth: tiles of 16 channels
  int64_t down_, across_, tiles_;
  WinogradBlocking blocking_;
};

}  // namespace

void winograd(const ConvArgs& a) { Winograd(a).run(); }

}  // namespace aigc::AIGC_ISA
