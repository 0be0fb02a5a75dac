// CPU kernels of switch norms, which operators.cpp registers with torch.

#pragma once

#include <cstdint>

namespace switch_norm {

enum Member { kIn, kLn, kBn, kGn, kMembers };
enum class Dtype { Float, Double, BFloat16, Half };

// x as (N, C, P): samples, channels, pixels. A row is one channel of one sample. In the contiguous layout the pixels of
// a row are adjacent in memory; in the channels-last layout the channels of a pixel are. With one pixel both are true.
// Trials that are trained together have an equal number of consecutive channels each, and share nothing.
struct Shape {
  int64_t N, C, P;
  bool channels_last;
  int64_t trials = 1;

  int64_t rows() const { return N * C; }
  int64_t channels_of_trial() const { return C / trials; }
  Shape of_trial() const { return {N, channels_of_trial(), P, channels_last}; }
};

struct Options {
  int64_t members, groups, chunks, correction;  // members: one bit for each member of the pool
  double eps;
  bool softmax;  // whether mean_switch and var_switch are logits, to which the softmax is applied, or weights

  bool has(Member member) const { return members >> member & 1; }
  int64_t pool_size() const {
    int64_t size = 0;
    for (int k = 0; k < kMembers; ++k) size += has(Member(k));
    return size;
  }
};

// x and y have the given dtype. Everything else is double if that is the dtype, else float. The switches have one value
// for each member, for each trial.
struct Inputs {
  const void *x, *mean_switch, *var_switch, *weight, *bias;
  const void *running_mean, *running_var;  // null: bn uses the statistics of the batch
};

// stats: (2, N, C), mean and variance of the rows. batch: (2, C), the mean and variance that running statistics move
// towards; not written if bn does not use the statistics of the batch.
void forward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, void* y, void* stats, void* batch);

struct Gradients {
  void *x, *mean_switch, *var_switch, *weight, *bias;
};

void backward(Dtype dtype, Shape shape, const Options& options, const Inputs& in, const void* stats, const void* dy,
              const Gradients& out);

// SparsestMax of n <= 8 logits, as in mixing.py. epsilon: the machine epsilon of the logits' dtype.
void sparsestmax(const double* logits, int64_t n, double radius, double epsilon, double* weights);
// The gradient of the logits, from the gradient of the weights.
void sparsestmax_gradient(const double* logits, int64_t n, double radius, double epsilon, const double* dweights,
                          double* dlogits);

}  // namespace switch_norm
