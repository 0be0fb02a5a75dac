// The arithmetic of switch norms on CPUs, for operators.cpp.

#pragma once

#include <cstdint>

namespace study {

enum Member { kIn, kLn, kBn, kGn, kMembers };
enum class Dtype { Float, Double, BFloat16, Half };

// x as (N, C, P): samples, channels, pixels. Rows are (sample, channel); their pixels lie side by side, or, channels
// last, the channels of a pixel do. With one pixel it is both.
struct Shape {
  int64_t N, C, P;
  bool channels_last;

  int64_t rows() const { return N * C; }
};

struct Options {
  int64_t members, groups, chunks, correction;  // members: a bit for each of the pool
  double eps;
  bool softmax;  // whether switches are logits to take the softmax of, or weights

  bool has(Member member) const { return members >> member & 1; }
};

// The inputs; x and y have the dtype, everything else is float, or double where that is the dtype.
struct Inputs {
  const void *x, *mean_switch, *var_switch, *weight, *bias;
  const void *running_mean, *running_var;  // null: bn takes the statistics of the batch
};

// stats: (2, N, C), mean and variance of the rows. batch: (2, C), what running statistics move towards; unused without.
void forward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, void* y, void* stats, void* batch);

struct Gradients {
  void *x, *mean_switch, *var_switch, *weight, *bias;
};

void backward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, const void* stats, const void* dy,
              const Gradients& out);

// SparsestMax of n <= 8 logits, as in mixing.py. `epsilon` is the rounding error of the logits' dtype.
void sparsestmax(const double* logits, int64_t n, double radius, double epsilon, double* weights);
// From the gradient of the weights to that of the logits.
void sparsestmax_gradient(const double* logits, int64_t n, double radius, double epsilon, const double* dweights,
                          double* dlogits);

}  // namespace study
