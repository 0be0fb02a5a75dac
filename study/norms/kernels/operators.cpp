// The operators study_norms::forward and ::backward on CPUs, and the gradient of the first on every device. Autograd is
// in C++, because on small tensors the way through Python takes longer than the arithmetic.

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels.h"

namespace {

using at::Tensor;
using std::optional;
using torch::autograd::variable_list;
using Triple = std::tuple<Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

study::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return study::Dtype::Float;
    case at::kDouble:
      return study::Dtype::Double;
    case at::kBFloat16:
      return study::Dtype::BFloat16;
    case at::kHalf:
      return study::Dtype::Half;
    default:
      TORCH_CHECK(false, "study_norms: x must be float32, float64, bfloat16 or float16");
  }
}

// Whether the channels of a pixel lie side by side, and the pixels of a sample, in any number of dimensions.
bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  const auto follows = [&](int64_t d) {
    const bool right = x.size(d) == 1 || x.stride(d) == expected;
    expected *= x.size(d);
    return right;
  };
  bool right = follows(1);
  for (int64_t d = x.dim() - 1; d >= 2; --d) right = right && follows(d);
  return right && follows(0);
}

Tensor dense(const Tensor& x) { return x.is_contiguous() || is_channels_last(x) ? x : x.contiguous(); }

// dy in the layout of x.
Tensor like(const Tensor& dy, const Tensor& x) {
  return dy.strides() == x.strides() ? dy : at::empty_like(x).copy_(dy);
}

study::Shape shape_of(const Tensor& x) {
  const int64_t N = x.size(0), C = x.size(1), P = N * C ? x.numel() / (N * C) : 0;
  return {N, C, P, P == 1 || !x.is_contiguous()};
}

const void* data(const optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

Triple forward(const Tensor& given, const Tensor& mean_switch, const Tensor& var_switch, const Tensor& weight,
               const Tensor& bias, const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
               int64_t members, int64_t groups, int64_t chunks, int64_t correction, double eps, bool softmax) {
  const study::Options options{members, groups, chunks, correction, eps, softmax};
  const Tensor x = dense(given);
  const auto shape = shape_of(x);
  Tensor y = at::empty_like(x), stats = at::empty({2, shape.N, shape.C}, weight.options());
  Tensor batch = at::empty({2, options.has(study::kBn) && !running_mean ? shape.C : 0}, weight.options());
  study::forward(dtype_of(x), shape, options,
                 {x.const_data_ptr(), mean_switch.const_data_ptr(), var_switch.const_data_ptr(),
                  weight.const_data_ptr(), bias.const_data_ptr(), data(running_mean), data(running_var)},
                 y.mutable_data_ptr(), stats.mutable_data_ptr(), batch.mutable_data_ptr());
  return {y, stats, batch};
}

Gradients backward(const Tensor& dy, const Tensor& given, const Tensor& stats, const Tensor& mean_switch,
                   const Tensor& var_switch, const Tensor& weight, const optional<Tensor>& running_mean,
                   const optional<Tensor>& running_var, int64_t members, int64_t groups, int64_t chunks,
                   int64_t correction, double eps, bool softmax) {
  const Tensor x = dense(given), gradient = like(dy, x);
  Tensor dx = at::empty_like(x), dweight = at::empty_like(weight), dbias = at::empty_like(weight);
  Tensor dmean = at::empty_like(mean_switch), dvar = at::empty_like(var_switch);
  study::backward(dtype_of(x), shape_of(x), {members, groups, chunks, correction, eps, softmax},
                  {x.const_data_ptr(), mean_switch.const_data_ptr(), var_switch.const_data_ptr(),
                   weight.const_data_ptr(), nullptr, data(running_mean), data(running_var)},
                  stats.const_data_ptr(), gradient.const_data_ptr(),
                  {dx.mutable_data_ptr(), dmean.mutable_data_ptr(), dvar.mutable_data_ptr(),
                   dweight.mutable_data_ptr(), dbias.mutable_data_ptr()});
  return {dx, dweight, dbias, dmean, dvar};
}

// Moves running statistics towards those of a batch, as Tensor.lerp_ would in several times the time.
void track(Tensor& running_mean, Tensor& running_var, const Tensor& batch, double momentum) {
  const int64_t C = batch.size(1);
  AT_DISPATCH_FLOATING_TYPES(batch.scalar_type(), "study_norms::track", [&] {
    const scalar_t* target = batch.const_data_ptr<scalar_t>();
    for (Tensor* running : {&running_mean, &running_var}) {
      scalar_t* value = running->mutable_data_ptr<scalar_t>();
      for (int64_t c = 0; c < C; ++c) value[c] += scalar_t(momentum) * (target[c] - value[c]);
      running->unsafeGetTensorImpl()->bump_version();  // autograd may have saved it, in evaluation
      target += C;
    }
  });
}

// ------------------------------------------------------------------------------------------------ sparse switches

struct SparseSwitch {
  std::vector<double> logits;
  double radius, epsilon;

  SparseSwitch(const Tensor& given, const Tensor& at)
      : logits(read(given)), radius(read(at)[0]), epsilon(given.scalar_type() == at::kDouble ? 0x1p-52 : 0x1p-23) {
    TORCH_CHECK(logits.size() <= 8, "study_norms: a pool has at most 8 members");
  }

  std::vector<double> weights() const {
    std::vector<double> result(logits.size());
    study::sparsestmax(logits.data(), int64_t(logits.size()), radius, epsilon, result.data());
    return result;
  }

  std::vector<double> gradient(const Tensor& dweights) const {
    std::vector<double> result(logits.size());
    study::sparsestmax_gradient(logits.data(), int64_t(logits.size()), radius, epsilon, read(dweights).data(),
                                result.data());
    return result;
  }

  static std::vector<double> read(const Tensor& tensor) {
    std::vector<double> values(tensor.numel());
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "study_norms::sparse_switch", [&] {
      const Tensor dense = tensor.contiguous();
      std::copy_n(dense.const_data_ptr<scalar_t>(), values.size(), values.begin());
    });
    return values;
  }

  static void write(const std::vector<double>& values, Tensor& tensor) {
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "study_norms::sparse_switch", [&] {
      scalar_t* target = tensor.mutable_data_ptr<scalar_t>();
      for (size_t i = 0; i < values.size(); ++i) target[i] = scalar_t(values[i]);
    });
  }
};

Tensor sparse_switch(const Tensor& logits, const Tensor& radius, const Tensor& fixed, const Tensor& choice) {
  if (*fixed.const_data_ptr<bool>()) return choice.clone();
  Tensor weights = at::empty_like(logits);
  SparseSwitch::write(SparseSwitch(logits, radius).weights(), weights);
  return weights;
}

Tensor sparse_switch_backward(const Tensor& dweights, const Tensor& logits, const Tensor& radius,
                              const Tensor& fixed) {
  Tensor dlogits = at::zeros_like(logits);
  if (!*fixed.const_data_ptr<bool>()) SparseSwitch::write(SparseSwitch(logits, radius).gradient(dweights), dlogits);
  return dlogits;
}

// A choice that has become one-hot is fixed, and its logits are put back on it.
void fix_choice(Tensor& logits, const Tensor& radius, Tensor& fixed, Tensor& choice) {
  bool& is_fixed = *fixed.mutable_data_ptr<bool>();
  if (!is_fixed) {
    const auto weights = SparseSwitch(logits, radius).weights();
    SparseSwitch::write(weights, choice);
    is_fixed = *std::max_element(weights.begin(), weights.end()) >= 1;
  }
  if (!is_fixed) return;
  SparseSwitch::write(SparseSwitch::read(choice), logits);
  logits.unsafeGetTensorImpl()->bump_version();  // autograd may have saved it
}

// ------------------------------------------------------------------------------------------------ gradients

template <class Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

optional<Tensor> defined(const Tensor& tensor) { return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt; }

void refuse_second_derivative() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "the fused switch norms have no second derivative: use study.norms.plain_norms()");
}

struct Normalize : torch::autograd::Function<Normalize> {
  static variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& mean_switch,
                               const Tensor& var_switch, const Tensor& weight, const Tensor& bias,
                               const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
                               int64_t members, int64_t groups, int64_t chunks, int64_t correction, double eps,
                               bool softmax) {
    static const auto op = find<decltype(::forward)>("study_norms::forward");
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, stats, batch] = op.call(x, mean_switch, var_switch, weight, bias, running_mean, running_var, members,
                                     groups, chunks, correction, eps, softmax);
    context->save_for_backward({x, stats, mean_switch, var_switch, weight, running_mean.value_or(Tensor()),
                                running_var.value_or(Tensor())});
    context->saved_data["options"] = c10::List<int64_t>({members, groups, chunks, correction, int64_t(softmax)});
    context->saved_data["eps"] = eps;
    context->mark_non_differentiable({stats, batch});
    return {y, stats, batch};
  }

  static variable_list backward(torch::autograd::AutogradContext* context, variable_list dy) {
    refuse_second_derivative();
    static const auto op = find<decltype(::backward)>("study_norms::backward");
    const auto saved = context->get_saved_variables();
    const auto options = context->saved_data["options"].toIntVector();
    auto [dx, dweight, dbias, dmean, dvar] =
        op.call(dy[0], saved[0], saved[1], saved[2], saved[3], saved[4], defined(saved[5]), defined(saved[6]),
                options[0], options[1], options[2], options[3], context->saved_data["eps"].toDouble(), options[4]);
    variable_list gradients = {dx, dmean, dvar, dweight, dbias};
    gradients.resize(13);  // one for every argument of forward
    return gradients;
  }
};

struct SparseMix : torch::autograd::Function<SparseMix> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& logits, const Tensor& radius,
                        const Tensor& fixed, const Tensor& choice) {
    static const auto op = find<decltype(::sparse_switch)>("study_norms::sparse_switch");
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({logits, radius, fixed});
    return op.call(logits, radius, fixed, choice);
  }

  static variable_list backward(torch::autograd::AutogradContext* context, variable_list dweights) {
    refuse_second_derivative();
    static const auto op = find<decltype(::sparse_switch_backward)>("study_norms::sparse_switch_backward");
    const auto saved = context->get_saved_variables();
    return {op.call(dweights[0], saved[0], saved[1], saved[2]), Tensor(), Tensor(), Tensor()};
  }
};

Tensor sparse_switch_with_gradient(const Tensor& logits, const Tensor& radius, const Tensor& fixed,
                                   const Tensor& choice) {
  return SparseMix::apply(logits, radius, fixed, choice);
}

Triple forward_with_gradient(const Tensor& x, const Tensor& mean_switch, const Tensor& var_switch,
                             const Tensor& weight, const Tensor& bias, const optional<Tensor>& running_mean,
                             const optional<Tensor>& running_var, int64_t members, int64_t groups, int64_t chunks,
                             int64_t correction, double eps, bool softmax) {
  auto result = Normalize::apply(x, mean_switch, var_switch, weight, bias, running_mean, running_var, members, groups,
                                 chunks, correction, eps, softmax);
  return {result[0], result[1], result[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(study_norms, CPU, m) {
  m.impl("forward", forward);
  m.impl("backward", backward);
  m.impl("track", track);
  m.impl("sparse_switch", sparse_switch);
  m.impl("sparse_switch_backward", sparse_switch_backward);
  m.impl("fix_choice", fix_choice);
}

TORCH_LIBRARY_IMPL(study_norms, Autograd, m) {
  m.impl("forward", forward_with_gradient);
  m.impl("sparse_switch", sparse_switch_with_gradient);
}
