// out = softmax(scale q k^T + mask) v without ever holding the scores (M. Milakov, N. Gimelshein, "Online
// normalizer calculation for softmax", 2018, https://arxiv.org/abs/1805.02867; T. Dao, "FlashAttention-2",
// 2023, https://arxiv.org/abs/2307.08691).
//
// First the keys and values of some heads are packed into panels; then each task takes a head and a block of
// queries past all keys, kKeys at a time: scores of a few row tiles, their weights as left tiles, and the
// weights times the values on top of what the queries have so far, all of which stays in L1. A pair of panels
// is read once for each row group, from L2, where a block of keys and values stays for the whole task.
//
// 4 T S D operations a head, and the passes of softmax.h over T S scores. Blocks of keys begin at multiples
// of kKeys, whatever the queries, and one without an allowed key changes no bit of a row. So a query's bits
// don't depend on which others come with it.
#include "cpu/attention.h"

#include "cpu/attention_mask.h"
#include "cpu/gemm.h"
#include "cpu/pack_right.h"
#include "cpu/softmax.h"

namespace aigc::AIGC_ISA {
namespace {

// Keys of a block. A stretch of the second product or two: 16 rows of scores and weights take 16 KiB and 8
// KiB of L1, or 8 and 8 in float32. Tiles come in pairs of row tiles, whose scores are there twice (those
// that are weighed and the next ones): 12 KiB each, and 6 KiB of weights.
template <class P>
constexpr int kKeys = P::kTiles         ? 96
                      : P::kDepth == 32 ? 256
                                        : 128;
template <class P>
constexpr int kGroup = P::kTiles ? 2 * kTileRows : kTileRows;
template <class P>
constexpr int kScores = kGroup<P> * kKeys<P>;  // of a piece
constexpr int kQueries = 128;                  // of a task, at most

template <class T>
AIGC_INLINE T* head_of(const HeadsView& x, int64_t batch, int64_t head) {
  return static_cast<T*>(x.data) + batch * x.batch_stride + head * x.head_stride;
}

template <class P, class T>
class Attention {
 public:
  explicit Attention(const AttentionArgs& args)
      : a(args), mask(args), packed(args.product, args.keys, args.head_dim) {
    // Enough tasks for all threads to end together.
    const int64_t heads = a.batch * a.heads, wanted = blocks_of(4 * a.threads, heads);
    const int64_t rows = round_up(blocks_of(a.queries, wanted), 2 * kTileRows);
    block_rows = int(smaller(rows, kQueries));
  }

  void run() const {
    const int64_t heads = a.batch * a.kv_heads, held = a.workspace_bytes / packed.bytes();
    for (int64_t first = 0; first < heads; first += held) {
      const int64_t count = smaller(held, heads - first);
      pack(first, count);
      attend(first, count);
    }
  }

 private:
  const AttentionArgs& a;
  const Mask<T> mask;
  const PackedHead packed;
  int block_rows;

  struct Task {
    char* queries;
    float* scores;
    char* weights;
    float* sums;
    RowState* states;
    const char *keys, *values;
    int64_t batch, head, first;
    int rows;
  };

  char* packed_head(int64_t index) const { return static_cast<char*>(a.workspace) + index * packed.bytes(); }

  // Items: per head its panels of keys, then the depth tiles of its values.
  void pack(int64_t first, int64_t count) const {
    const int64_t items = packed.key_panels + packed.value_tiles;
    parallel_for(count * items, 8, a.threads, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t head = first + item / items, part = item % items;
        char* to = packed_head(item / items);
        part < packed.key_panels ? pack_keys(head, part, to)
                                 : pack_values(head, part - packed.key_panels, to);
      }
    });
  }

  void pack_keys(int64_t head, int64_t panel, char* to) const {
    const T* from = head_of<const T>(a.k, head / a.kv_heads, head % a.kv_heads);
    const int64_t key = panel * kLanes;
    pack_columns(a.product, from + key * a.k.row_stride, a.k.row_stride, int(smaller(kLanes, a.keys - key)),
                 a.head_dim, to + panel * packed.key_tiles * P::kRight);
  }

  void pack_values(int64_t head, int64_t tile, char* to) const {
    const int64_t key = tile * P::kDepth;
    const T* from = head_of<const T>(a.v, head / a.kv_heads, head % a.kv_heads) + key * a.v.row_stride;
    to += packed.key_bytes() + tile * P::kRight;
    for (int64_t c = 0; c < a.head_dim; c += kLanes, to += packed.value_tiles * P::kRight)
      pack_depth(a.product, from + c, a.v.row_stride, int(smaller(kLanes, a.head_dim - c)),
                 int(smaller(P::kDepth, a.keys - key)), to);
  }

  // Tile loads of a short last row tile read past it.
  int64_t query_bytes() const { return (block_rows * packed.key_tiles + kTileRows) * P::kLeft; }
  static constexpr int64_t score_bytes() { return kScores<P> * 4 * (P::kTiles ? 2 : 1); }
  static constexpr int64_t weight_bytes() {
    return (kGroup<P> * (kKeys<P> / P::kDepth) + kTileRows) * int64_t(P::kLeft);
  }
  int64_t sum_bytes() const { return block_rows * packed.value_panels * kLanes * 4; }

  void attend(int64_t first, int64_t count) const {
    const int64_t shared = a.heads / a.kv_heads, blocks = blocks_of(a.queries, block_rows);
    const int64_t bytes = score_bytes() + round_up(query_bytes(), kTileLine) +
                          round_up(weight_bytes(), kTileLine) + sum_bytes() +
                          block_rows * int64_t(sizeof(RowState));
    parallel_for(count * shared * blocks, 1, a.threads, [&](int64_t begin, int64_t end) {
      Task task{};
      task.scores = static_cast<float*>(scratch(size_t(bytes)));
      task.queries = reinterpret_cast<char*>(task.scores) + score_bytes();
      task.weights = task.queries + round_up(query_bytes(), kTileLine);
      task.sums = reinterpret_cast<float*>(task.weights + round_up(weight_bytes(), kTileLine));
      task.states = reinterpret_cast<RowState*>(reinterpret_cast<char*>(task.sums) + sum_bytes());
      {
        const TileSession<P::kTiles> session;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t head = item / blocks, block = item % blocks, kv = head / shared;
          task.keys = packed_head(kv), task.values = task.keys + packed.key_bytes();
          task.batch = (first + kv) / a.kv_heads;
          task.head = (first + kv) % a.kv_heads * shared + head % shared;
          // Later queries see more keys when causal: a thread's chunk takes them from both ends.
          task.first = (block % 2 ? blocks - 1 - block / 2 : block / 2) * block_rows;
          task.rows = int(smaller(block_rows, a.queries - task.first));
          attend_block(task);
        }
      }
      release_scratch();
    });
  }

  // A group of rows and a block of keys.
  struct Piece {
    int64_t key;
    int keys, row, rows;  // no rows: there's no such piece
    float* scores;

    int panels() const { return int(blocks_of(keys, kLanes)); }
    int tiles() const { return int(blocks_of(keys, P::kDepth)); }
  };

  Piece first_piece(const Task& task) const { return next_piece(task, {0, 0, -kGroup<P>, 0, task.scores}); }

  Piece next_piece(const Task& task, Piece p) const {
    const int64_t seen = a.causal ? smaller(a.keys, task.first + task.rows) : a.keys;
    for (;;) {
      p.row += kGroup<P>;
      if (p.row >= task.rows) p.row = 0, p.key += kKeys<P>;
      if (p.key >= seen) return {};
      p.rows = int(smaller(kGroup<P>, task.rows - p.row));
      const int64_t last = a.causal ? smaller(a.keys, task.first + p.row + p.rows) : a.keys;
      if (p.key >= last) continue;
      p.keys = int(smaller(kKeys<P>, last - p.key));
      if (P::kTiles) p.scores = task.scores + (p.scores == task.scores ? kScores<P> : 0);
      return p;
    }
  }

  // Scores, weights, and the weighted values added to the sums, piece by piece.
  void attend_block(const Task& task) const {
    pack_queries(task);
    for (int r = 0; r < task.rows; ++r) task.states[r] = {{}, kNoScore, 1.0f};
    if constexpr (P::kTiles) {
      attend_overlapped(task);
    } else {
      for (Piece piece = first_piece(task); piece.rows; piece = next_piece(task, piece)) {
        score(task, piece, Idle{});
        raise_rows(task, piece, 0, piece.rows);
        weigh_rows(task, piece, 0, piece.rows);
        add_values(task, piece, Idle{});
      }
    }
    finish(task);
  }

  // The vector units look for a piece's maxima beside the values of the piece before, and weigh it beside the
  // scores of the piece after.
  void attend_overlapped(const Task& task) const {
    Piece before{}, piece = first_piece(task), after{};
    if (piece.rows) score(task, piece, Idle{});
    for (; piece.rows; before = piece, piece = after) {
      after = next_piece(task, piece);
      const auto raise = [&](int first, int last) { raise_rows(task, piece, first, last); };
      const auto weigh = [&](int first, int last) { weigh_rows(task, piece, first, last); };
      Beside raising(raise, portion(piece, packed.value_panels, before.tiles()));
      raising.add(0, piece.rows);
      if (before.rows) add_values(task, before, raising);
      raising.rest();
      Beside weighing(weigh, portion(piece, after.panels(), packed.key_tiles));
      weighing.add(0, piece.rows);
      if (after.rows) score(task, after, weighing);
      weighing.rest();
    }
    if (before.rows) add_values(task, before, Idle{});
  }

  // Rows of a piece for each depth tile of so many panels' products.
  static int portion(const Piece& piece, int64_t panels, int64_t tiles) {
    return int(blocks_of(piece.rows, larger(blocks_of(panels, kPanels) * tiles, 1)));
  }

  template <class Work>
  void score(const Task& task, const Piece& piece, Work&& work) const {
    const char* left = task.queries + piece.row * packed.key_tiles * P::kLeft;
    Block b = block(left, piece.rows, packed.key_tiles, packed.key_tiles, a.head_dim);
    b.panel = packed.key_tiles * P::kRight;
    b.sum_row_tile = kKeys<P> * kTileRows;
    multiply_all(b, piece.panels(), task.keys + piece.key / kLanes * b.panel, piece.scores, work);
  }

  template <class Work>
  void add_values(const Task& task, const Piece& piece, Work&& work) const {
    Block b = block(task.weights, piece.rows, kKeys<P> / P::kDepth, piece.tiles(), piece.keys);
    b.panel = packed.value_tiles * P::kRight;
    b.sum_row_tile = packed.value_panels * kTileFloats, b.add = piece.key > 0;
    multiply_all(b, int(packed.value_panels), task.values + piece.key / P::kDepth * P::kRight,
                 task.sums + piece.row * packed.value_panels * kLanes, work);
  }

  static Block block(const char* left, int rows, int64_t left_tiles, int64_t tiles, int64_t depth) {
    constexpr int kStep = P::kDepth / kTileRows;  // depth of 4 bytes
    Block b{};
    b.left = left, b.rows = rows, b.left_tiles = left_tiles, b.tiles = tiles;
    b.zeros = int((tiles * P::kDepth - depth) / kStep);
    b.sum_panel = kTileFloats;
    return b;
  }

  // Panels go in pairs, and where 32 vector registers hold 8 x 3 sums, an odd number ends with three.
  template <class Work>
  static void multiply_all(Block b, int panels, const char* right, float* sums, Work& work) {
    const auto done = [](int, int) {};
    for (int p = 0; p < panels;) {
      const int left = panels - p;
      b.right = right + p * b.panel, b.sums = sums + p * kTileFloats;
#if defined(__AVX512F__)
      if constexpr (!P::kTiles)
        if (left == 3) return multiply<P, 3>(b, work, done);
#endif
      left > 1 ? multiply<P, 2>(b, work, done) : multiply<P, 1>(b, work, done);
      p += kPanels;
    }
  }

  static constexpr int kVectors = P::kDepth / kLanes;

  // Masks and maxima. A pass of its own: the latency of one row's maximum hides behind the next ones.
  void raise_rows(const Task& task, const Piece& piece, int first, int last) const {
    const auto [key, keys, row, rows, scores] = piece;  // in registers, whatever is stored
    const int panels = piece.tiles() * kVectors;
    RowState* states = task.states + row;
    for (int r = first; r < last; ++r) {
      const int64_t query = task.first + row + r;
      float* of_row = row_scores(scores, r);
      mask.apply(task.batch, task.head, query, key, keys, of_row);
      const int64_t allowed = a.causal ? smaller(keys, query + 1 - key) : keys;
      if (allowed < panels * kLanes) clear_scores(of_row, int(allowed < 0 ? 0 : allowed), panels);
      raise(of_row, panels, mask.slope, states[r]);
    }
  }

  // Weights, and what comes of earlier sums.
  void weigh_rows(const Task& task, const Piece& piece, int first, int last) const {
    const auto [key, keys, row, rows, scores] = piece;
    const int panels = piece.tiles() * kVectors;
    RowState* states = task.states + row;
    char* weights = task.weights;
    for (int r = first; r < last; ++r) {
      const int tile = r / kTileRows * kTileRows;
      const int64_t pitch = smaller(rows - tile, kTileRows) * P::kLeft;
      char* line = weights + tile * (kKeys<P> / P::kDepth) * P::kLeft + r % kTileRows * P::kLeft;
      weigh<P>(row_scores(scores, r), panels, mask.slope, line, pitch, states[r]);
      if (key == 0 || states[r].shrink == 1.0f) continue;
      float* sums = row_sums(task, row + r);
      for (int64_t p = 0; p < packed.value_panels; ++p)
        store(sums + p * kTileFloats, load(sums + p * kTileFloats) * states[r].shrink);
    }
  }

  static float* row_scores(float* scores, int row) {
    return scores + row / kTileRows * kTileRows * kKeys<P> + row % kTileRows * kLanes;
  }

  float* row_sums(const Task& task, int row) const {
    return task.sums + row / kTileRows * packed.value_panels * kTileFloats + row % kTileRows * kLanes;
  }

  void pack_queries(const Task& task) const {
    const T* from = head_of<const T>(a.q, task.batch, task.head) + task.first * a.q.row_stride;
    for (int r = 0; r < task.rows; ++r, from += a.q.row_stride) {
      const int tile = r / kTileRows * kTileRows;
      const int64_t pitch = smaller(task.rows - tile, kTileRows) * P::kLeft;
      char* line = task.queries + tile * packed.key_tiles * P::kLeft + r % kTileRows * P::kLeft;
      for (int64_t k = 0; k < a.head_dim; k += P::kDepth, line += pitch) {
        if (a.head_dim - k >= P::kDepth) {
          write_line<P>(line, from + k);
        } else {
          T elements[P::kDepth] = {};
          std::memcpy(elements, from + k, size_t(a.head_dim - k) * sizeof(T));
          write_line<P>(line, elements);
        }
      }
    }
  }

  void finish(const Task& task) const {
    T* out = head_of<T>(a.out, task.batch, task.head) + task.first * a.out.row_stride;
    for (int r = 0; r < task.rows; ++r, out += a.out.row_stride) {
      const float total = sum(load(task.states[r].total));
      const float by = total == 0.0f ? 1.0f : total;  // no key: zeros
      const float* sums = row_sums(task, r);
      for (int64_t c = 0; c < a.head_dim; c += kLanes, sums += kTileFloats) {
        const Vec y = load(sums) / by;
        c + kLanes <= a.head_dim ? store(out + c, y) : store_n(out + c, y, int(a.head_dim - c));
      }
    }
  }
};

}  // namespace

void attention(const AttentionArgs& a) {
  with_product(a.product, a.dtype,
               [&](auto product, auto element) { Attention<decltype(product), decltype(element)>(a).run(); });
}

}  // namespace aigc::AIGC_ISA
