// Computes what reference.py computes, with two passes over x forward, and two over x and dy backward.
//
// The order of every sum is fixed, whatever the number of threads, so results are reproducible bit for bit.
//
// Names: N samples, C channels, P pixels; a row is one channel of one sample; x has type T, computations have type A.

#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace switch_norm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t kTile = 4096;            // number of values processed at a time, which fit into the L1 cache
constexpr int64_t kMinParallel = 1 << 15;  // number of values from which several threads are faster

// ------------------------------------------------------------------------------------------------ vectors

// A vector of 32 bytes, which is one or two registers on every processor.
template <class A>
struct Vector {
  static constexpr int64_t size = 32 / sizeof(A);
  typedef A type __attribute__((vector_size(32)));
};
template <class A>
using vector = typename Vector<A>::type;

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

inline void load(const float* p, vector<float>& v) { std::memcpy(&v, p, sizeof v); }
inline void load(const double* p, vector<double>& v) { std::memcpy(&v, p, sizeof v); }
inline void store(vector<float> v, float* p) { std::memcpy(p, &v, sizeof v); }
inline void store(vector<double> v, double* p) { std::memcpy(p, &v, sizeof v); }

typedef uint16_t halves __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(32)));

inline void load(const BFloat16* p, vector<float>& v) {
  halves bits;
  std::memcpy(&bits, p, sizeof bits);
  words wide = __builtin_convertvector(bits, words) << 16;
  std::memcpy(&v, &wide, sizeof v);
}

inline void store(vector<float> v, BFloat16* p) {  // rounds to nearest, ties to even
  words bits;
  std::memcpy(&bits, &v, sizeof bits);
  words rounded = (bits + ((bits >> 16) & 1) + 0x7fff) >> 16;
  words nan = words((bits & 0x7fffffff) > 0x7f800000);
  halves narrow = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), halves);
  std::memcpy(p, &narrow, sizeof narrow);
}

inline void load(const Half* p, vector<float>& v) {
#ifdef __F16C__
  v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  for (int i = 0; i < 8; ++i) v[i] = float(p[i]);
#endif
}

inline void store(vector<float> v, Half* p) {
#ifdef __F16C__
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < 8; ++i) p[i] = Half(v[i]);
#endif
}

// The lanes of a vector that are used: all; the last `count`, where the vector starts in values that were processed
// before; or the first `count`, where there are fewer values than lanes.
struct AllLanes {
  AllLanes(int64_t = 0) {}
};
struct LastLanes {
  int64_t count;
};
struct FirstLanes {
  int64_t count;
};

// Loads the values at p, and `rest` into unused lanes.
template <class A, class T>
inline vector<A> load_lanes(const T* p, AllLanes, A = 0) {
  vector<A> v;
  load(p, v);
  return v;
}

template <class A, class T>
inline vector<A> load_lanes(const T* p, LastLanes last, A rest = 0) {
  vector<A> v;
  load(p, v);
  for (int64_t i = 0; i < Vector<A>::size; ++i) v[i] = i < Vector<A>::size - last.count ? rest : v[i];
  return v;
}

template <class A, class T>
inline vector<A> load_lanes(const T* p, FirstLanes first, A rest = 0) {
  T padded[Vector<A>::size] = {};
  std::copy(p, p + first.count, padded);
  vector<A> v;
  load(padded, v);
  for (int64_t i = first.count; i < Vector<A>::size; ++i) v[i] = rest;
  return v;
}

template <class A, class T, class Lanes>
inline void store_lanes(vector<A> v, T* p, Lanes lanes) {
  if constexpr (std::is_same_v<Lanes, FirstLanes>) {
    T padded[Vector<A>::size];
    store(v, padded);
    std::copy(padded, padded + lanes.count, p);
  } else {
    store(v, p);
  }
}

// p += v, where v is zero in unused lanes.
template <class A, class Lanes>
inline void add_lanes(vector<A> v, A* p, Lanes lanes) {
  if constexpr (std::is_same_v<Lanes, FirstLanes>) {
    for (int64_t i = 0; i < lanes.count; ++i) p[i] += v[i];
  } else {
    vector<A> sum;
    load(p, sum);
    store(sum + v, p);
  }
}

// Calls body(i, accumulator, lanes) for the vectors of n values, so that every value is in a used lane exactly once.
// Sums use four accumulators, 0 to 3, because an addition has to wait for the result of the previous one.
template <class A, class Tail = LastLanes, class F>
inline void for_each_vector_once(int64_t n, const F& body) {
  constexpr int64_t size = Vector<A>::size;
  int64_t i = 0;
  for (; i + 4 * size <= n; i += 4 * size) {
    body(i, 0, AllLanes());
    body(i + size, 1, AllLanes());
    body(i + 2 * size, 2, AllLanes());
    body(i + 3 * size, 3, AllLanes());
  }
  for (; i + size <= n; i += size) body(i, 0, AllLanes());
  if (i == n) return;
  if (n >= size)
    body(n - size, 1, Tail{n - i});
  else
    body(i, 1, FirstLanes{n - i});
}

// The same for results that are independent of each other: the tail may compute some of them twice.
template <class A, class F>
inline void for_each_vector(int64_t n, const F& body) {
  for_each_vector_once<A, AllLanes>(n, body);
}

// A sum that adds the same lanes in the same order on every processor.
template <class A>
struct Sum {
  vector<A> accumulators[4] = {};

  A total() const {
    constexpr int64_t size = Vector<A>::size;
    vector<A> v = (accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]);
    A result = 0;
    for (int64_t i = 0; i < size / 2; ++i) result += v[i] + v[i + size / 2];
    return result;
  }
};

// The sum of n values, which term(i, lanes) computes vector by vector.
template <class A, class F>
inline A sum(int64_t n, const F& term) {
  Sum<A> result;
  for_each_vector_once<A>(n, [&](int64_t i, int accumulator, auto lanes) {
    result.accumulators[accumulator] += term(i, lanes);
  });
  return result.total();
}

// ------------------------------------------------------------------------------------------------ layout

// In the channels-last layout, a tile is this many pixels of one sample: enough that merging tiles costs little.
int64_t tile_pixels(Shape s) { return std::max<int64_t>(64, kTile / s.channels_of_trial()); }
int64_t tile_count(Shape s) { return (s.P + tile_pixels(s) - 1) / tile_pixels(s); }

// Calls work(begin, end) for parts of [0, n) in torch's threads. cost: number of values that one item reads.
template <class F>
inline void parallel_for(int64_t n, int64_t cost, const F& work) {
  if (n * cost <= kMinParallel || n < 2) return work(0, n);
  const auto call = [](int64_t begin, int64_t end, void* work) { (*static_cast<const F*>(work))(begin, end); };
  torch_parallel_for(0, n, std::max<int64_t>(1, kMinParallel / 2 / cost), call, const_cast<F*>(&work));
}

// ------------------------------------------------------------------------------------------------ passes over memory

// Channels last: calls body(p, pixels) for blocks of four pixels, so that per-channel values are loaded once per block.
template <class F>
inline void for_each_pixel_block(int64_t first, int64_t last, const F& body) {
  for (; first + 4 <= last; first += 4) body(first, std::integral_constant<int, 4>());
  for (; first < last; ++first) body(first, std::integral_constant<int, 1>());
}

// Channels last: calls work(n, tile, first, last) for every tile of pixels of every sample.
template <class F>
inline void for_each_tile(Shape s, int64_t tensors, const F& work) {
  const int64_t tiles = tile_count(s), pixels = tile_pixels(s);
  parallel_for(s.N * tiles, tensors * std::min(pixels, s.P) * s.C, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiles, first = i % tiles * pixels;
      work(n, i % tiles, first, std::min(s.P, first + pixels));
    }
  });
}

// Mean and biased variance of every row, in one pass over memory: two passes over each tile in the cache, and tiles are
// merged by the formula of Chan et al.
template <class T, class A>
void compute_row_moments(const T* x, Shape s, A* mean, A* var) {
  if (!s.channels_last) {
    parallel_for(s.rows(), s.P, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        A center = 0, square = 0;
        for (int64_t p = 0; p < s.P; p += kTile) {
          const int64_t n = std::min(kTile, s.P - p);
          const T* v = x + row * s.P + p;
          const A m = sum<A>(n, [&](int64_t i, auto lanes) { return load_lanes<A>(v + i, lanes); }) / A(n);
          const A q = sum<A>(n, [&](int64_t i, auto lanes) {
            const vector<A> d = load_lanes<A>(v + i, lanes, m) - m;
            return d * d;
          });
          const A delta = m - center, share = A(n) / A(p + n);
          center += delta * share;
          square += q + delta * delta * share * A(p);
        }
        mean[row] = center;
        var[row] = square / A(s.P);
      }
    });
    return;
  }
  const int64_t C = s.C, tiles = tile_count(s);
  std::vector<A> parts(tiles > 1 ? 2 * s.N * tiles * C : 0);
  for_each_tile(s, 1, [&](int64_t n, int64_t tile, int64_t first, int64_t last) {
    A* m = tiles > 1 ? &parts[2 * (n * tiles + tile) * C] : mean + n * C;
    A* q = tiles > 1 ? m + C : var + n * C;
    const T* v = x + n * s.P * C;
    std::fill(m, m + C, A(0));
    std::fill(q, q + C, A(0));
    for_each_pixel_block(first, last, [&](int64_t p, auto pixels) {
      for_each_vector_once<A>(C, [&](int64_t c, int, auto lanes) {
        vector<A> total = load_lanes<A>(v + p * C + c, lanes);
        for (int k = 1; k < pixels; ++k) total += load_lanes<A>(v + (p + k) * C + c, lanes);
        add_lanes<A>(total, m + c, lanes);
      });
    });
    for (int64_t c = 0; c < C; ++c) m[c] /= A(last - first);
    for_each_pixel_block(first, last, [&](int64_t p, auto pixels) {
      for_each_vector_once<A>(C, [&](int64_t c, int, auto lanes) {
        const vector<A> center = load_lanes<A>(m + c, lanes);
        vector<A> total = {};
        for (int k = 0; k < pixels; ++k) {
          const vector<A> d = load_lanes<A>(v + (p + k) * C + c, lanes) - center;
          total += d * d;
        }
        add_lanes<A>(total, q + c, lanes);
      });
    });
    if (tiles == 1)
      for (int64_t c = 0; c < C; ++c) q[c] /= A(s.P);
  });
  if (tiles == 1) return;
  parallel_for(s.N, 2 * tiles * C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      A *__restrict center = mean + n * C, *__restrict square = var + n * C;
      const A* first = &parts[2 * n * tiles * C];
      std::copy(first, first + C, center);
      std::copy(first + C, first + 2 * C, square);
      for (int64_t tile = 1; tile < tiles; ++tile) {
        const A *m = first + 2 * tile * C, *q = m + C;
        const int64_t before = tile * tile_pixels(s), pixels = std::min(tile_pixels(s), s.P - before);
        const A share = A(pixels) / A(before + pixels), weight = share * A(before);
        for (int64_t c = 0; c < C; ++c) {
          const A delta = m[c] - center[c];
          center[c] += delta * share;
          square[c] += q[c] + delta * delta * weight;
        }
      }
      for (int64_t c = 0; c < C; ++c) square[c] /= A(s.P);
    }
  });
}

// y = (x - center) * scale + shift, with one center, scale and shift per row. Subtracting the center first is accurate
// even where |mean| >> std.
template <class T, class A>
void normalize_rows(const T* x, Shape s, const A* center, const A* scale, const A* shift, T* y) {
  if (!s.channels_last) {
    parallel_for(s.rows(), s.P, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const A m = center[row], a = scale[row], b = shift[row];
        const T* v = x + row * s.P;
        T* w = y + row * s.P;
        for_each_vector<A>(s.P, [&](int64_t i, int, auto lanes) {
          store_lanes<A>((load_lanes<A>(v + i, lanes) - m) * a + b, w + i, lanes);
        });
      }
    });
    return;
  }
  for_each_tile(s, 1, [&](int64_t n, int64_t, int64_t first, int64_t last) {
    const A *m = center + n * s.C, *a = scale + n * s.C, *b = shift + n * s.C;
    for_each_pixel_block(first, last, [&](int64_t p, auto pixels) {
      for_each_vector<A>(s.C, [&](int64_t c, int, auto lanes) {
        const vector<A> mc = load_lanes<A>(m + c, lanes), ac = load_lanes<A>(a + c, lanes);
        const vector<A> bc = load_lanes<A>(b + c, lanes);
        for (int k = 0; k < pixels; ++k) {
          const int64_t i = (n * s.P + p + k) * s.C + c;
          store_lanes<A>((load_lanes<A>(x + i, lanes) - mc) * ac + bc, y + i, lanes);
        }
      });
    });
  });
}

// For each row, the sums of dy and of dy * (x - center).
template <class T, class A>
void compute_row_gradient_sums(const T* x, const T* dy, Shape s, const A* center, A* total, A* product) {
  if (!s.channels_last) {
    parallel_for(s.rows(), 2 * s.P, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const A m = center[row];
        const T *v = x + row * s.P, *g = dy + row * s.P;
        Sum<A> t, q;
        for_each_vector_once<A>(s.P, [&](int64_t i, int accumulator, auto lanes) {
          const vector<A> gradient = load_lanes<A>(g + i, lanes);
          t.accumulators[accumulator] += gradient;
          q.accumulators[accumulator] += gradient * (load_lanes<A>(v + i, lanes) - m);
        });
        total[row] = t.total();
        product[row] = q.total();
      }
    });
    return;
  }
  const int64_t C = s.C, tiles = tile_count(s);
  std::vector<A> parts(tiles > 1 ? 2 * s.N * tiles * C : 0);
  for_each_tile(s, 2, [&](int64_t n, int64_t tile, int64_t first, int64_t last) {
    A* t = tiles > 1 ? &parts[2 * (n * tiles + tile) * C] : total + n * C;
    A* q = tiles > 1 ? t + C : product + n * C;
    std::fill(t, t + C, A(0));
    std::fill(q, q + C, A(0));
    for_each_pixel_block(first, last, [&](int64_t p, auto pixels) {
      for_each_vector_once<A>(C, [&](int64_t c, int, auto lanes) {
        const vector<A> m = load_lanes<A>(center + n * C + c, lanes);
        vector<A> sum = {}, products = {};
        for (int k = 0; k < pixels; ++k) {
          const int64_t i = (n * s.P + p + k) * C + c;
          const vector<A> gradient = load_lanes<A>(dy + i, lanes);
          sum += gradient;
          products += gradient * (load_lanes<A>(x + i, lanes) - m);
        }
        add_lanes<A>(sum, t + c, lanes);
        add_lanes<A>(products, q + c, lanes);
      });
    });
  });
  if (tiles == 1) return;
  parallel_for(s.N, 2 * tiles * C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      A *__restrict t = total + n * C, *__restrict q = product + n * C;
      std::fill(t, t + C, A(0));
      std::fill(q, q + C, A(0));
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const A* tile_sums = &parts[2 * (n * tiles + tile) * C];
        for (int64_t c = 0; c < C; ++c) {
          t[c] += tile_sums[c];
          q[c] += tile_sums[C + c];
        }
      }
    }
  });
}

// dx = scale * dy + slope * (x - center) + offset, with one of each coefficient per row.
template <class T, class A>
void compute_input_gradient(const T* x, const T* dy, Shape s, const A* center, const A* scale, const A* slope,
                            const A* offset, T* dx) {
  if (!s.channels_last) {
    parallel_for(s.rows(), 2 * s.P, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const A m = center[row], a = scale[row], b = slope[row], c = offset[row];
        const T *v = x + row * s.P, *g = dy + row * s.P;
        T* w = dx + row * s.P;
        for_each_vector<A>(s.P, [&](int64_t i, int, auto lanes) {
          store_lanes<A>(load_lanes<A>(g + i, lanes) * a + ((load_lanes<A>(v + i, lanes) - m) * b + c), w + i, lanes);
        });
      }
    });
    return;
  }
  for_each_tile(s, 2, [&](int64_t n, int64_t, int64_t first, int64_t last) {
    const A *m = center + n * s.C, *a = scale + n * s.C, *b = slope + n * s.C, *d = offset + n * s.C;
    for_each_pixel_block(first, last, [&](int64_t p, auto pixels) {
      for_each_vector<A>(s.C, [&](int64_t c, int, auto lanes) {
        const vector<A> mc = load_lanes<A>(m + c, lanes), ac = load_lanes<A>(a + c, lanes);
        const vector<A> bc = load_lanes<A>(b + c, lanes), dc = load_lanes<A>(d + c, lanes);
        for (int k = 0; k < pixels; ++k) {
          const int64_t i = (n * s.P + p + k) * s.C + c;
          store_lanes<A>(load_lanes<A>(dy + i, lanes) * ac + ((load_lanes<A>(x + i, lanes) - mc) * bc + dc), dx + i,
                         lanes);
        }
      });
    });
  });
}

// ------------------------------------------------------------------------------------------------ member statistics

// Weights by member, 0 for a normalizer outside the pool. A member whose two weights are 0 is skipped.
template <class A>
struct MemberWeights {
  A mean[kMembers] = {}, var[kMembers] = {};

  bool uses(Member member) const { return mean[member] != 0 || var[member] != 0; }
  bool only(Member member) const {
    for (int k = 0; k < kMembers; ++k)
      if (k != member && uses(Member(k))) return false;
    return mean[member] == 1 && var[member] == 1;
  }
};

template <class A>
void compute_weights(const A* logits, const Options& o, A* weights) {
  A largest = -INFINITY, total = 0;
  for (int k = 0, i = 0; k < kMembers; ++k)
    if (o.has(Member(k))) largest = std::max(largest, weights[k] = logits[i++]);
  if (!o.softmax) return;
  for (int k = 0; k < kMembers; ++k)
    if (o.has(Member(k))) total += weights[k] = std::exp(weights[k] - largest);
  for (int k = 0; k < kMembers; ++k) weights[k] /= total;
}

// The gradient of a switch (logits or weights), from the gradient of the weights in double.
template <class A>
void compute_switch_gradient(const A* weights, const double* gradient, const Options& o, A* result) {
  double product = 0;
  for (int k = 0; k < kMembers; ++k) product += double(weights[k]) * gradient[k];
  for (int k = 0, i = 0; k < kMembers; ++k)
    if (o.has(Member(k))) result[i++] = A(o.softmax ? weights[k] * (gradient[k] - product) : gradient[k]);
}

// Statistics of the members: ln (N,), gn (N, groups), bn (chunks, C). Those of a skipped member are 0.
template <class A>
struct MemberMoments {
  std::vector<A> ln_mean, ln_var, gn_mean, gn_var, bn_mean, bn_var;
  bool uses_running = false;  // whether bn uses running statistics, which have no gradient
};

// Over the channels of each group: mean of variances + variance of means, without a difference of large numbers.
template <class A>
void compute_group_moments(const A* mean, const A* var, int64_t groups, int64_t size, A* center, A* spread) {
  for (int64_t g = 0; g < groups; ++g) {
    const A *m = mean + g * size, *v = var + g * size;
    const A c = sum<A>(size, [&](int64_t i, auto lanes) { return load_lanes<A>(m + i, lanes); }) / A(size);
    const A total = sum<A>(size, [&](int64_t i, auto lanes) {
      const vector<A> d = load_lanes<A>(m + i, lanes, c) - c;
      return d * d + load_lanes<A>(v + i, lanes);
    });
    center[g] = c;
    spread[g] = total / A(size);
  }
}

// The same over the samples of each chunk, for every channel.
template <class A>
void compute_chunk_moments(const A* mean, const A* var, int64_t chunks, int64_t samples, int64_t C, A* center,
                           A* spread) {
  parallel_for(chunks, samples * C, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const A *m = mean + g * samples * C, *v = var + g * samples * C;
      A *__restrict a = center + g * C, *__restrict b = spread + g * C;
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < C; ++c) a[c] += m[n * C + c];
      for (int64_t c = 0; c < C; ++c) a[c] /= A(samples);
      for (int64_t n = 0; n < samples; ++n)
        for (int64_t c = 0; c < C; ++c) {
          A d = m[n * C + c] - a[c];
          b[c] += d * d + v[n * C + c];
        }
      for (int64_t c = 0; c < C; ++c) b[c] /= A(samples);
    }
  });
}

template <class A>
MemberMoments<A> compute_member_moments(const A* mean, const A* var, Shape s, const Options& o,
                                        const MemberWeights<A>& w, const A* running_mean, const A* running_var,
                                        bool uses_batch) {
  MemberMoments<A> moments{std::vector<A>(s.N),            std::vector<A>(s.N),
                           std::vector<A>(s.N * o.groups), std::vector<A>(s.N * o.groups),
                           std::vector<A>(o.chunks * s.C), std::vector<A>(o.chunks * s.C)};
  const bool ln = w.uses(kLn), gn = w.uses(kGn);
  if (ln || gn) {
    parallel_for(s.N, 2 * s.C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const A *m = mean + n * s.C, *v = var + n * s.C;
        if (ln) compute_group_moments(m, v, 1, s.C, &moments.ln_mean[n], &moments.ln_var[n]);
        if (gn)
          compute_group_moments(m, v, o.groups, s.C / o.groups, &moments.gn_mean[n * o.groups],
                                &moments.gn_var[n * o.groups]);
      }
    });
  }
  if (running_mean) {
    moments.uses_running = true;
    std::copy(running_mean, running_mean + s.C, moments.bn_mean.begin());
    std::copy(running_var, running_var + s.C, moments.bn_var.begin());
  } else if (w.uses(kBn) || uses_batch) {
    compute_chunk_moments(mean, var, o.chunks, s.N / o.chunks, s.C, moments.bn_mean.data(), moments.bn_var.data());
  }
  return moments;
}

// The mixed mean and 1 / mixed standard deviation of the rows of sample n.
template <class A>
void compute_mixed_moments(int64_t n, const A* mean, const A* var, Shape s, const Options& o, const MemberWeights<A>& w,
                           const MemberMoments<A>& moments, A* __restrict mixed, A* __restrict rstd) {
  const int64_t chunk = n / (s.N / o.chunks), size = s.C / o.groups;
  const A *m = mean + n * s.C, *v = var + n * s.C;
  const A *bm = &moments.bn_mean[chunk * s.C], *bv = &moments.bn_var[chunk * s.C];
  const A eps = A(o.eps);
  // in is skipped if its weights are 0, because 0 times a statistic that is not finite is NaN.
  const bool in = w.uses(kIn);
  for (int64_t g = 0; g < o.groups; ++g) {
    const A base = w.mean[kLn] * moments.ln_mean[n] + w.mean[kGn] * moments.gn_mean[n * o.groups + g];
    const A spread = w.var[kLn] * moments.ln_var[n] + w.var[kGn] * moments.gn_var[n * o.groups + g] + eps;
    const int64_t first = g * size, last = first + size;
    if (in)
      for (int64_t c = first; c < last; ++c) {
        mixed[c] = base + w.mean[kIn] * m[c] + w.mean[kBn] * bm[c];
        rstd[c] = 1 / std::sqrt(spread + w.var[kIn] * v[c] + w.var[kBn] * bv[c]);
      }
    else
      for (int64_t c = first; c < last; ++c) {
        mixed[c] = base + w.mean[kBn] * bm[c];
        rstd[c] = 1 / std::sqrt(spread + w.var[kBn] * bv[c]);
      }
  }
}

// ------------------------------------------------------------------------------------------------ forward

template <class A>
MemberWeights<A> read_member_weights(const Inputs& in, const Options& o, int64_t trial) {
  MemberWeights<A> w;
  compute_weights(static_cast<const A*>(in.mean_switch) + trial * o.pool_size(), o, w.mean);
  compute_weights(static_cast<const A*>(in.var_switch) + trial * o.pool_size(), o, w.var);
  return w;
}

// The values by channel that belong to the first channel of a trial; null stays null.
template <class A>
const A* select_trial(const void* values, Shape s, int64_t trial) {
  return values ? static_cast<const A*>(values) + trial * s.channels_of_trial() : nullptr;
}

// The rows of one trial, (N, C of the trial), of an array (N, C). With one trial this is the array itself, else a copy,
// because the statistics of members are computed from adjacent rows.
template <class A>
class TrialRows {
 public:
  TrialRows(A* all, Shape s, int64_t trial) : s_(s), first_(all + trial * s.channels_of_trial()) {
    if (s.trials == 1) return;
    copy_.resize(s.N * width());
    for (int64_t n = 0; n < s.N; ++n) std::copy_n(first_ + n * s.C, width(), &copy_[n * width()]);
  }
  A* data() { return s_.trials == 1 ? first_ : copy_.data(); }
  void write_back() const {
    if (s_.trials == 1) return;
    for (int64_t n = 0; n < s_.N; ++n) std::copy_n(&copy_[n * width()], width(), first_ + n * s_.C);
  }

 private:
  int64_t width() const { return s_.channels_of_trial(); }
  Shape s_;
  A* first_;
  std::vector<std::remove_const_t<A>> copy_;
};

// The scale and shift of the rows of one trial, and the mean and variance that its running statistics move towards.
// Batch normalization in evaluation needs no statistics of x: its rows have the running mean and no variance.
template <class A>
void compute_scale_and_shift(A* mean, A* var, Shape s, const Options& o, const MemberWeights<A>& w, const A* gamma,
                             const A* beta, const A* running_mean, const A* running_var, A* scale, A* shift,
                             A* batch_mean, A* batch_var) {
  const bool uses_batch = o.has(kBn) && !running_mean;
  if (running_mean && w.only(kBn)) {
    for (int64_t n = 0; n < s.N; ++n) std::copy(running_mean, running_mean + s.C, mean + n * s.C);
    std::fill(var, var + s.rows(), A(0));
  }
  const auto moments = compute_member_moments(mean, var, s, o, w, running_mean, running_var, uses_batch);
  parallel_for(s.N, 16 * s.C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      A *__restrict a = scale + n * s.C, *__restrict b = shift + n * s.C;
      const A* m = mean + n * s.C;
      compute_mixed_moments(n, mean, var, s, o, w, moments, b, a);
      for (int64_t c = 0; c < s.C; ++c) {
        a[c] *= gamma[c];
        b[c] = beta[c] + (m[c] - b[c]) * a[c];
      }
    }
  });
  if (!uses_batch) return;
  const int64_t count = s.N / o.chunks * s.P;
  const A unbiased = o.correction == 0 && count > 1 ? A(count) / A(count - 1) : A(1);
  for (int64_t c = 0; c < s.C; ++c) {
    A m = 0, v = 0;
    for (int64_t g = 0; g < o.chunks; ++g) {
      m += moments.bn_mean[g * s.C + c];
      v += moments.bn_var[g * s.C + c];
    }
    batch_mean[c] = m / A(o.chunks);
    batch_var[c] = v / A(o.chunks) * unbiased;
  }
}

template <class T, class A>
void forward_typed(const T* x, Shape s, const Options& o, const Inputs& in, T* y, A* mean, A* batch) {
  A* var = mean + s.rows();
  bool needs_rows = false;
  for (int64_t trial = 0; trial < s.trials; ++trial)
    needs_rows = needs_rows || !in.running_mean || !read_member_weights<A>(in, o, trial).only(kBn);
  if (needs_rows) {
    compute_row_moments(x, s, mean, var);
    if (o.correction && s.P > 1)
      for (int64_t i = 0; i < s.rows(); ++i) var[i] *= A(s.P) / A(s.P - 1);
  }
  std::vector<A> scale(s.rows()), shift(s.rows());
  for (int64_t trial = 0; trial < s.trials; ++trial) {
    TrialRows<A> means(mean, s, trial), vars(var, s, trial), scales(scale.data(), s, trial),
        shifts(shift.data(), s, trial);
    A* batch_mean = batch + trial * s.channels_of_trial();
    compute_scale_and_shift(means.data(), vars.data(), s.of_trial(), o, read_member_weights<A>(in, o, trial),
                            select_trial<A>(in.weight, s, trial), select_trial<A>(in.bias, s, trial),
                            select_trial<A>(in.running_mean, s, trial), select_trial<A>(in.running_var, s, trial),
                            scales.data(), shifts.data(), batch_mean, batch_mean + s.C);
    for (const auto* rows : {&means, &vars, &scales, &shifts}) rows->write_back();
  }
  normalize_rows(x, s, mean, scale.data(), shift.data(), y);
}

// ------------------------------------------------------------------------------------------------ backward

// The gradients of the parameters of one trial. dm and dv first contain the sums of dy and dy * (x - mean) of its rows,
// at the end the offset and the slope of dx; scale gets the factor of dy.
template <class A>
void compute_row_gradients(const A* mean, const A* var, Shape s, const Options& o, const MemberWeights<A>& w,
                           const A* gamma, const A* running_mean, const A* running_var, A* dm, A* dv, A* scale,
                           A* dgamma, A* dbeta, A* dmean_switch, A* dvar_switch) {
  const int64_t C = s.C, samples = s.N / o.chunks, size = C / o.groups;
  const auto moments = compute_member_moments(mean, var, s, o, w, running_mean, running_var, false);

  std::fill(dgamma, dgamma + C, A(0));
  std::fill(dbeta, dbeta + C, A(0));
  std::vector<A> mixed(C), ln_dm(s.N), ln_dv(s.N), gn_dm(s.N * o.groups), gn_dv(s.N * o.groups);
  std::vector<A> bn_dm(o.chunks * C), bn_dv(o.chunks * C);
  double dw_mean[kMembers] = {}, dw_var[kMembers] = {};
  // m, v: statistics of a row; e, d: gradients of its mixed mean and variance. Prefixes l, g, b: those of ln, gn, bn.
  for (int64_t n = 0; n < s.N; ++n) {
    const A *m = mean + n * C, *v = var + n * C;
    A *__restrict e = &dm[n * C], *__restrict d = &dv[n * C], *__restrict r = &scale[n * C];
    A *__restrict be = &bn_dm[n / samples * C], *__restrict bd = &bn_dv[n / samples * C];
    compute_mixed_moments(n, mean, var, s, o, w, moments, mixed.data(), r);
    for (int64_t c = 0; c < C; ++c) {
      const A total = e[c], slope = (d[c] + total * (m[c] - mixed[c])) * r[c];
      dbeta[c] += total;
      dgamma[c] += slope;
      const A g = gamma[c] * r[c];
      d[c] = A(-0.5) * g * r[c] * slope;
      e[c] = -g * total;
      r[c] = g;
      be[c] += e[c];
      bd[c] += d[c];
    }
    for (int64_t g = 0; g < o.groups; ++g) {
      const A *eg = e + g * size, *dg = d + g * size;
      const A te = sum<A>(size, [&](int64_t i, auto lanes) { return load_lanes<A>(eg + i, lanes); });
      const A td = sum<A>(size, [&](int64_t i, auto lanes) { return load_lanes<A>(dg + i, lanes); });
      gn_dm[n * o.groups + g] = te;
      gn_dv[n * o.groups + g] = td;
      ln_dm[n] += te;
      ln_dv[n] += td;
    }
    if (w.uses(kIn)) {
      dw_mean[kIn] += sum<A>(C, [&](int64_t i, auto lanes) {
        return load_lanes<A>(e + i, lanes) * load_lanes<A>(m + i, lanes);
      });
      dw_var[kIn] += sum<A>(C, [&](int64_t i, auto lanes) {
        return load_lanes<A>(d + i, lanes) * load_lanes<A>(v + i, lanes);
      });
    }
  }

  auto dot = [](const std::vector<A>& gradient, const std::vector<A>& statistic, int64_t period) {
    double total = 0;
    for (size_t i = 0; i < gradient.size(); ++i) total += double(gradient[i]) * statistic[i % period];
    return total;
  };
  if (w.uses(kLn)) {
    dw_mean[kLn] = dot(ln_dm, moments.ln_mean, s.N);
    dw_var[kLn] = dot(ln_dv, moments.ln_var, s.N);
  }
  if (w.uses(kGn)) {
    dw_mean[kGn] = dot(gn_dm, moments.gn_mean, s.N * o.groups);
    dw_var[kGn] = dot(gn_dv, moments.gn_var, s.N * o.groups);
  }
  if (w.uses(kBn)) {
    dw_mean[kBn] = dot(bn_dm, moments.bn_mean, o.chunks * C);
    dw_var[kBn] = dot(bn_dv, moments.bn_var, o.chunks * C);
  }
  compute_switch_gradient(w.mean, dw_mean, o, dmean_switch);
  compute_switch_gradient(w.var, dw_var, o, dvar_switch);

  // From the gradients of mixed statistics to those of row statistics: then dm is the offset of dx and dv its slope.
  const A bessel = o.correction && s.P > 1 ? A(s.P) / A(s.P - 1) : A(1);
  const A to_offset = A(1) / A(s.P), to_slope = 2 * bessel / A(s.P);
  const A wm_bn = moments.uses_running ? A(0) : w.mean[kBn] / A(samples);
  const A wv_bn = moments.uses_running ? A(0) : w.var[kBn] / A(samples);
  parallel_for(s.N, 16 * C, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t chunk = n / samples * C;
      const A *m = mean + n * C, *bm = &moments.bn_mean[chunk], *be = &bn_dm[chunk], *bd = &bn_dv[chunk];
      A *__restrict e = &dm[n * C], *__restrict d = &dv[n * C];
      const A le = w.mean[kLn] / A(C) * ln_dm[n], ld = w.var[kLn] / A(C) * ln_dv[n], lm = moments.ln_mean[n];
      for (int64_t g = 0; g < o.groups; ++g) {
        const int64_t group = n * o.groups + g;
        const A ge = w.mean[kGn] / A(size) * gn_dm[group], gd = w.var[kGn] / A(size) * gn_dv[group];
        const A gm = moments.gn_mean[group];
        for (int64_t c = g * size; c < (g + 1) * size; ++c) {
          const A bv = wv_bn * bd[c];
          e[c] = (w.mean[kIn] * e[c] + le + ge + wm_bn * be[c] +
                  2 * (ld * (m[c] - lm) + gd * (m[c] - gm) + bv * (m[c] - bm[c]))) *
                 to_offset;
          d[c] = (w.var[kIn] * d[c] + ld + gd + bv) * to_slope;
        }
      }
    }
  });
}

template <class T, class A>
void backward_typed(const T* x, Shape s, const Options& o, const Inputs& in, const A* mean, const T* dy, T* dx,
                    const Gradients& out) {
  const A* var = mean + s.rows();
  std::vector<A> dm(s.rows()), dv(s.rows()), scale(s.rows());
  compute_row_gradient_sums(x, dy, s, mean, dm.data(), dv.data());
  for (int64_t trial = 0; trial < s.trials; ++trial) {
    const int64_t channel = trial * s.channels_of_trial(), member = trial * o.pool_size();
    TrialRows<const A> means(mean, s, trial), vars(var, s, trial);
    TrialRows<A> dms(dm.data(), s, trial), dvs(dv.data(), s, trial), scales(scale.data(), s, trial);
    compute_row_gradients(means.data(), vars.data(), s.of_trial(), o, read_member_weights<A>(in, o, trial),
                          select_trial<A>(in.weight, s, trial), select_trial<A>(in.running_mean, s, trial),
                          select_trial<A>(in.running_var, s, trial), dms.data(), dvs.data(), scales.data(),
                          static_cast<A*>(out.weight) + channel, static_cast<A*>(out.bias) + channel,
                          static_cast<A*>(out.mean_switch) + member, static_cast<A*>(out.var_switch) + member);
    for (const auto* rows : {&dms, &dvs, &scales}) rows->write_back();
  }
  compute_input_gradient(x, dy, s, mean, scale.data(), dv.data(), dm.data(), dx);
}

// ------------------------------------------------------------------------------------------------ sparsestmax

constexpr int64_t kLogits = 8;

// The intermediate results of sparsestmax in mixing.py, in descending order of the logits.
struct SparsestmaxPath {
  int64_t n, order[kLogits], active, support;
  double gaps[kLogits], untied[kLogits], spread, stretch, points[kLogits], threshold;
  bool tied;

  SparsestmaxPath(const double* logits, int64_t n, double radius, double epsilon)
      : n(n), active(0), spread(0), stretch(0) {
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    std::stable_sort(order, order + n, [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
    double total = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      gaps[i] = std::max(logits[order[i]] - logits[order[0]], -1.0);
      untied[i] = i ? std::min(gaps[i], -epsilon) : gaps[i];
      total += untied[i];
      squares += untied[i] * untied[i];
      if (i == 0) continue;
      const double excess = std::clamp(radius * radius + 1.0 / double(n) - 1.0 / double(i + 1), 0.0, 1.0);
      const double V = squares - total * total / double(i + 1), t = std::sqrt(excess / V) * (1 + 8 * epsilon);
      if (t > stretch) stretch = t, spread = V, active = i + 1;
    }
    tied = gaps[1] > -epsilon;
    for (int64_t i = 0; i < n; ++i) points[i] = stretch > 1 ? stretch * untied[i] : gaps[i];
    double sum = 0;
    threshold = 0;
    for (int64_t i = 0; i < n && 1 + double(i + 1) * points[i] > sum + points[i]; ++i) {
      sum += points[i];
      support = i + 1;
      threshold = (sum - 1) / double(support);
    }
  }
};

template <class F>
void dispatch_dtype(Dtype dtype, const F& work) {
  switch (dtype) {
    case Dtype::Float:
      return work(float());
    case Dtype::Double:
      return work(double());
    case Dtype::BFloat16:
      return work(BFloat16());
    case Dtype::Half:
      return work(Half());
  }
}

}  // namespace

void forward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, void* y, void* stats, void* batch) {
  dispatch_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = typename Arithmetic<T>::type;
    forward_typed(static_cast<const T*>(in.x), shape, options, in, static_cast<T*>(y), static_cast<A*>(stats),
               static_cast<A*>(batch));
  });
}

void backward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, const void* stats, const void* dy,
              const Gradients& out) {
  dispatch_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = typename Arithmetic<T>::type;
    backward_typed(static_cast<const T*>(in.x), shape, options, in, static_cast<const A*>(stats),
                static_cast<const T*>(dy), static_cast<T*>(out.x), out);
  });
}

void sparsestmax(const double* logits, int64_t n, double radius, double epsilon, double* weights) {
  if (n == 1) {
    weights[0] = 1;
    return;
  }
  const SparsestmaxPath path(logits, n, radius, epsilon);
  for (int64_t i = 0; i < n; ++i) weights[path.order[i]] = std::max(path.points[i] - path.threshold, 0.0);
}

void sparsestmax_gradient(const double* logits, int64_t n, double radius, double epsilon, const double* dweights,
                          double* dlogits) {
  if (n == 1) {
    dlogits[0] = 0;
    return;
  }
  const SparsestmaxPath path(logits, n, radius, epsilon);
  double d[kLogits] = {}, total = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (path.points[i] > path.threshold) d[i] = dweights[path.order[i]];
    total += d[i];
  }
  for (int64_t i = 0; i < path.support; ++i) d[i] -= total / double(path.support);
  // Where the largest logits tie, the stretch is huge and its gradient is noise: only the gaps have a gradient.
  if (path.stretch > 1 && !path.tied) {
    double dstretch = 0, mean = 0;
    for (int64_t i = 0; i < n; ++i) dstretch += d[i] * path.untied[i];
    for (int64_t i = 0; i < path.active; ++i) mean += path.untied[i] / double(path.active);
    for (int64_t i = 0; i < n; ++i) {
      d[i] *= path.stretch;
      if (i < path.active) d[i] -= dstretch * path.stretch / path.spread * (path.untied[i] - mean);
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool clamped = logits[path.order[i]] - logits[path.order[0]] < -1.0;
    dlogits[path.order[i]] = clamped ? 0 : d[i];
  }
}

}  // namespace switch_norm
