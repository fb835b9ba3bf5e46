// The step, once, over a small SIMD vocabulary S (simd_*.h): a tile of tokens
// against all query heads, in three stages:
//
//   scores = K q      4 tokens x 4 heads in registers, one reduction tree
//   weights           one base-2 online-softmax pass a head
//   acc = acc * alpha + weights V     4 heads x a slice of head_dim
//
// A stage goes through all heads before the next one starts: where they meet,
// results travel through memory and the core waits for them, once a tile.
//
// Included only by step_*.cpp. Everything here is a template over S, so that
// no two instruction sets share a symbol, and nothing of std:: is used that
// could leave a copy for the linker to share.
#pragma once

#include "kernels/cpu/cache_element.h"
#include "kernels/cpu/step_kernel.h"

// Offsets here stay within the row of one token: int is wide enough.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)
namespace quire::cpu {

/** Where the rows of a tile are: anywhere in the cache. */
struct ScatteredRows {
  const std::byte* base;
  const std::int64_t* offset;
};

/**
 * Calls pass<kHeads>(head) for all heads, four at a time. Each pass is a lambda
 * of its own, so that no two units share an instance.
 */
template <typename Pass>
[[gnu::always_inline]] inline void for_heads(int num_heads, Pass pass) {
  int head = 0;
  for (; head + 4 <= num_heads; head += 4) {
    pass.template operator()<4>(head);
  }
  switch (num_heads - head) {
    case 3:
      pass.template operator()<3>(head);
      break;
    case 2:
      pass.template operator()<2>(head);
      break;
    case 1:
      pass.template operator()<1>(head);
      break;
    default:
      break;
  }
}

template <typename S, typename T, int kHeadDim>
struct Step {
  using V = typename S::V;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVectors = kHeadDim / kLanes;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static_assert(kHeadDim % kLanes == 0);
  static_assert(kSumLanes % kLanes == 0);

  static constexpr int min(int a, int b) {
    return a < b ? a : b;
  }

  /**
   * Asks for the next line of a stream. Into L2: what a tile reads of one head
   * lies 2 KiB apart and would fall into 8 of L1's 64 sets. Forced inline
   * because gcc takes a function that only prefetches for one without effects
   * and drops its calls.
   */
  QUIRE_SIMD void ask(PrefetchStream& stream) {
    __builtin_prefetch(stream.at, 0, 2);
    stream.at += 64;
    if (stream.at >= stream.end) [[unlikely]] {
      stream.at = stream.next->begin;
      stream.end = stream.next->end;
      // The last segment is empty: it is asked for again and again.
      stream.next += stream.at != stream.end;
    }
  }
  /**
   * Asks for as many lines as the i-th of some pieces of kBytes completes: one
   * by one between the multiplies, because a burst is partly dropped.
   */
  template <int kBytes>
  QUIRE_SIMD void ask_for_piece(Lookahead& ahead, int i) {
    const int num_lines = (i + 1) * kBytes / 64 - i * kBytes / 64;
#pragma GCC unroll 16
    for (int line = 0; line < num_lines; ++line) {
      ask(ahead.first);
      ask(ahead.again);
    }
  }

  QUIRE_SIMD const T* elements(const std::byte* row) {
    return reinterpret_cast<const T*>(row);
  }

  // ---- scores -------------------------------------------------------------

  /** Scores of kTokens tokens for kHeads heads. */
  template <int kHeads, int kTokens, bool kAsk>
  QUIRE_SIMD void dot_rows(
      const std::byte* const* row,
      const float* q,
      float* scores,
      Lookahead& ahead) {
    V acc[kHeads * kTokens];
#pragma GCC unroll 16
    for (int i = 0; i < kHeads * kTokens; ++i) {
      acc[i] = S::zero();
    }
    if constexpr (kIsPair<T>) {
      dot_pairs<kHeads, kTokens, kAsk>(acc, row, q, ahead);
    } else {
      constexpr int kChunkBytes = 2 * kLanes * static_cast<int>(sizeof(T));
#pragma GCC unroll 1
      for (int c = 0; c + 1 < kVectors; c += 2) {
        V q0[kHeads];
        V q1[kHeads];
#pragma GCC unroll 16
        for (int h = 0; h < kHeads; ++h) {
          q0[h] = S::load(q + h * kHeadDim + c * kLanes);
          q1[h] = S::load(q + h * kHeadDim + (c + 1) * kLanes);
        }
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          V a;
          V b;
          S::load2(elements(row[t]) + c * kLanes, a, b);
          if constexpr (kAsk) {
            ask_for_piece<kChunkBytes>(ahead, t);
          }
#pragma GCC unroll 16
          for (int h = 0; h < kHeads; ++h) {
            V& sum = acc[h * kTokens + t];
            sum = S::fma(a, q0[h], sum);
            sum = S::fma(b, q1[h], sum);
          }
        }
      }
      if constexpr (kVectors % 2 != 0) {
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          const V a = S::load1(elements(row[t]) + (kVectors - 1) * kLanes);
          if constexpr (kAsk) {
            ask_for_piece<kChunkBytes / 2>(ahead, t);
          }
#pragma GCC unroll 16
          for (int h = 0; h < kHeads; ++h) {
            V& sum = acc[h * kTokens + t];
            sum = S::fma(
                a, S::load(q + h * kHeadDim + (kVectors - 1) * kLanes), sum);
          }
        }
      }
    }
    S::template reduce_scores<kHeads, kTokens>(acc, scores, kMaxTileTokens);
  }

  /** The multiplies of dot_rows where K and q are pairs of bf16. */
  template <int kHeads, int kTokens, bool kAsk>
  QUIRE_SIMD void dot_pairs(
      V* acc,
      const std::byte* const* row,
      const float* q,
      Lookahead& ahead) {
    constexpr int kPairBytes = 4 * kLanes;  // one vector
    constexpr int kWhole = kRowBytes / kPairBytes;
#pragma GCC unroll 1
    for (int c = 0; c < kWhole; ++c) {
      typename S::Pairs q_pairs[kHeads];
#pragma GCC unroll 16
      for (int h = 0; h < kHeads; ++h) {
        q_pairs[h] = S::load_pairs(q + h * kHeadDim + c * kLanes);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const auto k_pairs = S::load_pairs(row[t] + c * kPairBytes);
        if constexpr (kAsk) {
          ask_for_piece<kPairBytes>(ahead, t);
        }
#pragma GCC unroll 16
        for (int h = 0; h < kHeads; ++h) {
          V& sum = acc[h * kTokens + t];
          sum = S::dot_pairs(sum, k_pairs, q_pairs[h]);
        }
      }
    }
    if constexpr (kRowBytes % kPairBytes != 0) {
      static_assert(kRowBytes % kPairBytes == kPairBytes / 2);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const auto k_pairs = S::load_half_pairs(row[t] + kWhole * kPairBytes);
        if constexpr (kAsk) {
          ask_for_piece<kPairBytes / 2>(ahead, t);
        }
#pragma GCC unroll 16
        for (int h = 0; h < kHeads; ++h) {
          V& sum = acc[h * kTokens + t];
          sum = S::dot_pairs(
              sum,
              k_pairs,
              S::load_half_pairs(q + h * kHeadDim + kWhole * kLanes));
        }
      }
    }
  }

  /** scores[h][t], h < kHeads. */
  template <int kHeads, bool kAsk>
  static void score_heads(
      ScatteredRows k,
      int num_tokens,
      const float* q,
      float* scores,
      Lookahead& in_scores) {
    // NOLINTNEXTLINE(bugprone-branch-clone): only where kHeads is 4
    constexpr int kTokens = S::kDotAccumulators / (kHeads == 3 ? 4 : kHeads);
    Lookahead ahead = in_scores;  // in registers while the stage runs
    const std::byte* row[kTokens];
    int t = 0;
    for (; t + kTokens <= num_tokens; t += kTokens) {
#pragma GCC unroll 16
      for (int i = 0; i < kTokens; ++i) {
        row[i] = k.base + k.offset[t + i];
      }
      dot_rows<kHeads, kTokens, kAsk>(row, q, scores + t, ahead);
    }
    if (t < num_tokens) {
      // The last row again in the spare places: nothing past it is read.
      for (int i = 0; i < kTokens; ++i) {
        row[i] = k.base + k.offset[min(t + i, num_tokens - 1)];
      }
      dot_rows<kHeads, kTokens, kAsk>(row, q, scores + t, ahead);
    }
    in_scores = ahead;
  }

  // ---- weights ------------------------------------------------------------

  /** 1 in the first kLanes places, then 0: masks the last vector of a tile. */
  static constexpr float kOnesThenZeros[2 * 16] =
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

  /**
   * The scores of kHeads heads become weights relative to each head's maximum;
   * alpha[h] is the factor for what was accumulated before this tile.
   *
   * The maximum grows in few tiles: one comparison finds out, and only then is
   * it reduced across lanes. Sums stay spread over lanes to the end. Heads go
   * side by side because one exp2 is a chain of about 60 cycles.
   */
  template <int kHeads>
  static void weigh(const StepArgs& args, int head) {
    float* alpha = args.alpha + head;
    float* scores = args.scores + head * kMaxTileTokens;
    const int num_tokens = args.num_tokens;
    const int num_vectors = (num_tokens + kLanes - 1) / kLanes;
    const V scale = S::set1(args.scale_log2);
    float* max_log2 = args.max_log2 + head;
    float* lanes = args.sum + head * kSumLanes;
    V sum[kHeads];
    V max[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      float* row = scores + h * kMaxTileTokens;
      // Lanes past the tile repeat a score, which leaves the maximum as it is;
      // their weights are taken out of the sum below.
      for (int t = num_tokens; t < num_vectors * kLanes; ++t) {
        row[t] = row[0];
      }
      V top = S::mul(S::load(row), scale);
      for (int i = 1; i < num_vectors; ++i) {
        top = S::max(top, S::mul(S::load(row + i * kLanes), scale));
      }
      sum[h] = S::load(lanes + h * kSumLanes);
      max[h] = S::set1(max_log2[h]);
      alpha[h] = 1.0f;
      if (S::any_greater(top, max[h])) {
        const float next = S::reduce_max(top);
        const V factor = S::exp2(S::set1(max_log2[h] - next));
        alpha[h] = S::first(factor);
        sum[h] = S::mul(sum[h], factor);
        max[h] = S::set1(next);
        max_log2[h] = next;
      }
    }
    const auto weight = [&](int h, int i) __attribute__((always_inline)) {
      float* at = scores + h * kMaxTileTokens + i * kLanes;
      // One rounding: the difference is exact where it matters, near 0.
      const V w = S::exp2(S::fms(S::load(at), scale, max[h]));
      S::store(at, w);
      return w;
    };
    for (int i = 0; i + 1 < num_vectors; ++i) {
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = S::add(sum[h], weight(h, i));
      }
    }
    const int rest = num_tokens - (num_vectors - 1) * kLanes;
    const V valid = S::load(kOnesThenZeros + 16 - rest);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      S::store(
          lanes + h * kSumLanes,
          S::fma(weight(h, num_vectors - 1), valid, sum[h]));
    }
  }

  // ---- weighted sum -------------------------------------------------------

  /** The widest slice of a row, in vectors, whose accumulators fit. */
  static constexpr int slice_vectors(int num_heads) {
    int best = 1;
    for (int width = 1; width <= kVectors; ++width) {
      const bool whole_chunks = width % 2 == 0 || width == kVectors;
      if (kVectors % width == 0 && whole_chunks &&
          num_heads * width <= S::kSumAccumulators) {
        best = width;
      }
    }
    return best;
  }

  /** acc[h][slice] = acc[h][slice] * alpha[h] + sum over t of w[h][t] v[t]. */
  template <int kHeads, int kWidth, bool kAsk>
  static void add_slice(
      ScatteredRows v,
      int num_tokens,
      int first_vector,
      const float* weights,
      const float* alpha,
      float* acc,
      Lookahead& in_sum) {
    Lookahead ahead = in_sum;
    V sum[kHeads][kWidth];
    float* base = acc + first_vector * kLanes;
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const V factor = S::set1(alpha[h]);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        sum[h][i] = S::mul(S::load(base + h * kHeadDim + i * kLanes), factor);
      }
    }
    for (int t = 0; t < num_tokens; ++t) {
      if constexpr (kAsk) {
        ask_for_piece<kWidth * kLanes* static_cast<int>(sizeof(T))>(ahead, t);
      }
      const T* row = elements(v.base + v.offset[t]) + first_vector * kLanes;
      V w[kHeads];
#pragma GCC unroll 16
      for (int h = 0; h < kHeads; ++h) {
        w[h] = S::set1(weights[h * kMaxTileTokens + t]);
      }
#pragma GCC unroll 16
      for (int i = 0; i + 1 < kWidth; i += 2) {
        V a;
        V b;
        S::load2(row + i * kLanes, a, b);
#pragma GCC unroll 16
        for (int h = 0; h < kHeads; ++h) {
          sum[h][i] = S::fma(a, w[h], sum[h][i]);
          sum[h][i + 1] = S::fma(b, w[h], sum[h][i + 1]);
        }
      }
      if constexpr (kWidth % 2 != 0) {
        const V a = S::load1(row + (kWidth - 1) * kLanes);
#pragma GCC unroll 16
        for (int h = 0; h < kHeads; ++h) {
          sum[h][kWidth - 1] = S::fma(a, w[h], sum[h][kWidth - 1]);
        }
      }
    }
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        S::store(base + h * kHeadDim + i * kLanes, sum[h][i]);
      }
    }
    in_sum = ahead;
  }

  /** acc[h] = acc[h] * alpha[h] + sum over t of weights[h][t] v[t]. */
  template <int kHeads, bool kAsk>
  QUIRE_SIMD void add_heads(
      ScatteredRows v,
      int num_tokens,
      const float* weights,
      const float* alpha,
      float* acc,
      Lookahead& ahead) {
    constexpr int kWidth = slice_vectors(kHeads);
    for (int i = 0; i < kVectors; i += kWidth) {
      add_slice<kHeads, kWidth, kAsk>(
          v, num_tokens, i, weights, alpha, acc, ahead);
    }
  }

  // ---- groups of more than four heads --------------------------------------

  // Their rows are widened once, a few at a time, for all passes of four heads.
  using Wide = Step<S, float, kHeadDim>;
  static constexpr int kWideRows = 16;
  struct WideOffsets {
    std::int64_t row[kWideRows];
  };
  static constexpr WideOffsets kWide = [] {
    WideOffsets offsets{};
    for (int i = 0; i < kWideRows; ++i) {
      offsets.row[i] = std::int64_t{i} * kHeadDim * 4;
    }
    return offsets;
  }();

  /** num_rows rows as f32 in load order. */
  static void
  widen(ScatteredRows rows, int num_rows, float* wide, Lookahead& stage) {
    Lookahead ahead = stage;
    for (int t = 0; t < num_rows; ++t, wide += kHeadDim) {
      const T* row = elements(rows.base + rows.offset[t]);
      ask_for_piece<kRowBytes>(ahead, t);
#pragma GCC unroll 16
      for (int c = 0; c + 1 < kVectors; c += 2) {
        V a;
        V b;
        S::load2(row + c * kLanes, a, b);
        S::store(wide + c * kLanes, a);
        S::store(wide + (c + 1) * kLanes, b);
      }
      if constexpr (kVectors % 2 != 0) {
        S::store(
            wide + (kVectors - 1) * kLanes,
            S::load1(row + (kVectors - 1) * kLanes));
      }
    }
    stage = ahead;
  }

  /** visit(first token, number of tokens, rows) for pieces of widened rows. */
  template <typename Visit>
  static void for_wide_rows(
      ScatteredRows rows,
      int num_tokens,
      Lookahead& ahead,
      Visit visit) {
    alignas(64) float wide[kWideRows * kHeadDim];
    for (int t = 0; t < num_tokens; t += kWideRows) {
      const int num_rows = min(kWideRows, num_tokens - t);
      widen({rows.base, rows.offset + t}, num_rows, wide, ahead);
      visit(
          t,
          num_rows,
          ScatteredRows{reinterpret_cast<const std::byte*>(wide), kWide.row});
    }
  }

  // ---- the step -----------------------------------------------------------

  /** `head` is the first of the KV head's query heads. */
  static void score(const StepArgs& args, ScatteredRows k, int head) {
    const float* q = args.q + head * kHeadDim;
    float* scores = args.scores + head * kMaxTileTokens;
    if constexpr (kIsPair<T>) {  // nothing to widen; only one pass asks
      for_heads(args.group_size, [&]<int kHeads>(int h) {
        const auto pass =
            h == 0 ? score_heads<kHeads, true> : score_heads<kHeads, false>;
        pass(
            k,
            args.num_tokens,
            q + h * kHeadDim,
            scores + h * kMaxTileTokens,
            *args.in_scores);
      });
      return;
    }
    if (args.group_size <= 4) {
      for_heads(args.group_size, [&]<int kHeads>(int) {
        score_heads<kHeads, true>(
            k, args.num_tokens, q, scores, *args.in_scores);
      });
      return;
    }
    const auto visit = [&](int t, int num_rows, ScatteredRows rows) {
      for_heads(args.group_size, [&]<int kHeads>(int h) {
        Wide::template score_heads<kHeads, false>(
            rows,
            num_rows,
            q + h * kHeadDim,
            scores + h * kMaxTileTokens + t,
            *args.in_scores);
      });
    };
    for_wide_rows(k, args.num_tokens, *args.in_scores, visit);
  }

  static void sum(const StepArgs& args, ScatteredRows v, int head) {
    const float* weights = args.scores + head * kMaxTileTokens;
    const float* alpha = args.alpha + head;
    float* acc = args.acc + head * kHeadDim;
    if (args.group_size <= 4) {
      for_heads(args.group_size, [&]<int kHeads>(int) {
        add_heads<kHeads, true>(
            v, args.num_tokens, weights, alpha, acc, *args.in_sum);
      });
      return;
    }
    constexpr float kOnes[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    const auto visit = [&](int t, int num_rows, ScatteredRows rows) {
      for_heads(args.group_size, [&]<int kHeads>(int h) {
        Wide::template add_heads<kHeads, false>(
            rows,
            num_rows,
            weights + h * kMaxTileTokens + t,
            t == 0 ? alpha + h : kOnes,
            acc + h * kHeadDim,
            *args.in_sum);
      });
    };
    for_wide_rows(v, args.num_tokens, *args.in_sum, visit);
  }

  static void run(const StepArgs& args) {
    for (int i = 0; i < args.num_kv_heads; ++i) {
      const ScatteredRows k = {args.k + i * kRowBytes, args.row_offset};
      score(args, k, i * args.group_size);
    }
    for_heads(args.num_kv_heads * args.group_size, [&]<int kHeads>(int head) {
      weigh<kHeads>(args, head);
    });
    for (int i = 0; i < args.num_kv_heads; ++i) {
      const ScatteredRows v = {args.v + i * kRowBytes, args.row_offset};
      sum(args, v, i * args.group_size);
    }
  }
};

/** What does not depend on head_dim's unrolling: conversions of q and out. */
template <typename S, typename TQ, typename T, int kHeadDim>
struct StepEnds {
  using V = typename S::V;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVectors = kHeadDim / kLanes;

  static void prepare_q(const void* q, int num_heads, float* prepared) {
    if constexpr (kIsPair<T>) {  // q stays as it is, a row in half its place
      constexpr int kRowFloats = kHeadDim / 2;
      const float* bits = static_cast<const float*>(q);
      for (int h = 0; h < num_heads; ++h) {
        __builtin_memcpy(
            prepared + h * kHeadDim, bits + h * kRowFloats, 4 * kRowFloats);
      }
      return;
    }
    const TQ* from = static_cast<const TQ*>(q);
    for (int h = 0; h < num_heads; ++h) {
      for (int c = 0; c + 1 < kVectors; c += 2) {
        V a = S::load1(from + c * kLanes);
        V b = S::load1(from + (c + 1) * kLanes);
        if constexpr (kIsBFloat<T>) {
          S::split_even_odd(a, b);
        }
        S::store(prepared + c * kLanes, a);
        S::store(prepared + (c + 1) * kLanes, b);
      }
      if constexpr (kVectors % 2 != 0) {
        S::store(
            prepared + (kVectors - 1) * kLanes,
            S::load1(from + (kVectors - 1) * kLanes));
      }
      from += kHeadDim;
      prepared += kHeadDim;
    }
  }

  static void finish(const float* acc, float factor, void* out) {
    TQ* to = static_cast<TQ*>(out);
    const V f = S::set1(factor);
    for (int c = 0; c + 1 < kVectors; c += 2) {
      V a = S::mul(S::load(acc + c * kLanes), f);
      V b = S::mul(S::load(acc + (c + 1) * kLanes), f);
      if constexpr (kIsBFloat<T>) {
        S::join_even_odd(a, b);
      }
      S::store1(to + c * kLanes, a);
      S::store1(to + (c + 1) * kLanes, b);
    }
    if constexpr (kVectors % 2 != 0) {
      S::store1(
          to + (kVectors - 1) * kLanes,
          S::mul(S::load(acc + (kVectors - 1) * kLanes), f));
    }
  }

  static void combine(float* into, float a, const float* from, float b) {
    const V x = S::set1(a);
    const V y = S::set1(b);
    for (int d = 0; d < kHeadDim; d += kLanes) {
      S::store(
          into + d, S::fma(S::load(from + d), y, S::mul(S::load(into + d), x)));
    }
  }

  static float total(const float* sum) {
    V x = S::load(sum);
    for (int i = kLanes; i < kSumLanes; i += kLanes) {
      x = S::add(x, S::load(sum + i));
    }
    return S::reduce_add(x);
  }
};

template <typename S, typename TQ, typename T>
StepKernel find_step_for(int head_dim) {
  const auto kernel = []<int kHeadDim>() {
    using Ends = StepEnds<S, TQ, T, kHeadDim>;
    return StepKernel{
        Step<S, T, kHeadDim>::run,
        Ends::prepare_q,
        Ends::finish,
        Ends::combine,
        Ends::total};
  };
  switch (head_dim) {
    case 64:
      return kernel.template operator()<64>();
    case 80:
      return kernel.template operator()<80>();
    case 96:
      return kernel.template operator()<96>();
    case 128:
      return kernel.template operator()<128>();
    case 256:
      return kernel.template operator()<256>();
    default:
      return {};
  }
}

template <typename S, typename T>
StepKernel find_step_for(DType q_dtype, int head_dim) {
  switch (q_dtype) {
    case DType::Float32:
      return find_step_for<S, float, T>(head_dim);
    case DType::Float16:
      return find_step_for<S, Half, T>(head_dim);
    case DType::BFloat16:
      return find_step_for<S, BFloat, T>(head_dim);
  }
  return {};
}

template <typename S>
StepKernel find_step(DType q_dtype, DType kv_dtype, int head_dim) {
  switch (kv_dtype) {
    case DType::Float32:
      return find_step_for<S, float>(q_dtype, head_dim);
    case DType::Float16:
      return find_step_for<S, Half>(q_dtype, head_dim);
    case DType::BFloat16:
      return find_step_for<S, BFloat>(q_dtype, head_dim);
  }
  return {};
}

}  // namespace quire::cpu
// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)
