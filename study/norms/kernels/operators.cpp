// Registers the operators of switch norms on CPUs, and their autograd on every device. Autograd is in C++, because on
// small tensors a detour through Python takes longer than the computation.

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

switch_norm::Dtype get_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return switch_norm::Dtype::Float;
    case at::kDouble:
      return switch_norm::Dtype::Double;
    case at::kBFloat16:
      return switch_norm::Dtype::BFloat16;
    case at::kHalf:
      return switch_norm::Dtype::Half;
    default:
      TORCH_CHECK(false, "switch_norm: x must be float32, float64, bfloat16 or float16");
  }
}

// Whether x is dense in channels-last order, for any number of dimensions.
bool is_channels_last(const Tensor& x) {
  int64_t expected = 1;
  const auto has_expected_stride = [&](int64_t d) {
    const bool matches = x.size(d) == 1 || x.stride(d) == expected;
    expected *= x.size(d);
    return matches;
  };
  bool matches = has_expected_stride(1);
  for (int64_t d = x.dim() - 1; d >= 2; --d) matches = matches && has_expected_stride(d);
  return matches && has_expected_stride(0);
}

Tensor to_dense(const Tensor& x) { return x.is_contiguous() || is_channels_last(x) ? x : x.contiguous(); }

// Returns dy with the strides of x.
Tensor with_strides_of(const Tensor& dy, const Tensor& x) {
  return dy.strides() == x.strides() ? dy : at::empty_like(x).copy_(dy);
}

// A switch (trials, K) says that the channels are those of several trials; with (K,) there is one.
switch_norm::Shape get_shape(const Tensor& x, const Tensor& mean_switch) {
  const int64_t N = x.size(0), C = x.size(1), P = N * C ? x.numel() / (N * C) : 0;
  return {N, C, P, P == 1 || !x.is_contiguous(), mean_switch.dim() == 2 ? mean_switch.size(0) : 1};
}

// Values by channel and switches, whose strides may be any (expanded, or a part of another tensor), as dense tensors.
struct DenseParameters {
  Tensor mean_switch, var_switch, weight, bias, running_mean, running_var;

  DenseParameters(const Tensor& mean_switch, const Tensor& var_switch, const Tensor& weight,
                  const optional<Tensor>& bias, const optional<Tensor>& running_mean,
                  const optional<Tensor>& running_var)
      : mean_switch(mean_switch.contiguous()),
        var_switch(var_switch.contiguous()),
        weight(weight.contiguous()),
        bias(bias ? bias->contiguous() : Tensor()),
        running_mean(running_mean ? running_mean->contiguous() : Tensor()),
        running_var(running_var ? running_var->contiguous() : Tensor()) {}

  switch_norm::Inputs inputs(const Tensor& x) const {
    const auto data = [](const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; };
    return {data(x), data(mean_switch), data(var_switch), data(weight), data(bias), data(running_mean),
            data(running_var)};
  }
};

Triple forward(const Tensor& input, const Tensor& mean_switch, const Tensor& var_switch, const Tensor& weight,
               const Tensor& bias, const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
               int64_t members, int64_t groups, int64_t chunks, int64_t correction, double eps, bool softmax) {
  TORCH_CHECK(members > 0 && members >> switch_norm::kMembers == 0, "switch_norm: the kernels lack a member of ",
              members);
  const switch_norm::Options options{members, groups, chunks, correction, eps, softmax};
  const DenseParameters parameters(mean_switch, var_switch, weight, bias, running_mean, running_var);
  const Tensor x = to_dense(input);
  const auto shape = get_shape(x, mean_switch);
  Tensor y = at::empty_like(x), stats = at::empty({2, shape.N, shape.C}, weight.options());
  Tensor batch = at::empty({2, options.has(switch_norm::kBn) && !running_mean ? shape.C : 0}, weight.options());
  switch_norm::forward(get_dtype(x), shape, options, parameters.inputs(x), y.mutable_data_ptr(),
                       stats.mutable_data_ptr(), batch.mutable_data_ptr());
  return {y, stats, batch};
}

Gradients backward(const Tensor& dy, const Tensor& input, const Tensor& stats, const Tensor& mean_switch,
                   const Tensor& var_switch, const Tensor& weight, const optional<Tensor>& running_mean,
                   const optional<Tensor>& running_var, int64_t members, int64_t groups, int64_t chunks,
                   int64_t correction, double eps, bool softmax) {
  const DenseParameters parameters(mean_switch, var_switch, weight, std::nullopt, running_mean, running_var);
  const Tensor x = to_dense(input), gradient = with_strides_of(dy, x);
  Tensor dx = at::empty_like(x), dweight = at::empty_like(weight), dbias = at::empty_like(weight);
  Tensor dmean = at::empty(mean_switch.sizes(), mean_switch.options());
  Tensor dvar = at::empty(var_switch.sizes(), var_switch.options());
  switch_norm::backward(get_dtype(x), get_shape(x, mean_switch), {members, groups, chunks, correction, eps, softmax},
                        parameters.inputs(x), stats.const_data_ptr(), gradient.const_data_ptr(),
                        {dx.mutable_data_ptr(), dmean.mutable_data_ptr(), dvar.mutable_data_ptr(),
                         dweight.mutable_data_ptr(), dbias.mutable_data_ptr()});
  return {dx, dweight, dbias, dmean, dvar};
}

// Moves running statistics towards those of a batch, several times as fast as Tensor.lerp_.
void update_running_statistics(Tensor& running_mean, Tensor& running_var, const Tensor& batch, double momentum) {
  const int64_t C = batch.size(1);
  AT_DISPATCH_FLOATING_TYPES(batch.scalar_type(), "switch_norm::update_running_statistics", [&] {
    const scalar_t* target = batch.const_data_ptr<scalar_t>();
    for (Tensor* running : {&running_mean, &running_var}) {
      scalar_t* value = running->mutable_data_ptr<scalar_t>();
      const int64_t step = running->stride(0);
      for (int64_t c = 0; c < C; ++c) value[c * step] += scalar_t(momentum) * (target[c] - value[c * step]);
      running->unsafeGetTensorImpl()->bump_version();  // notifies autograd, which may have saved it in evaluation
      target += C;
    }
  });
}

// ------------------------------------------------------------------------------------------------ sparse switches

struct SparseSwitch {
  std::vector<double> logits;
  double radius, epsilon;

  SparseSwitch(const Tensor& logits, const Tensor& radius)
      : logits(read(logits)),
        radius(read(radius)[0]),
        epsilon(logits.scalar_type() == at::kDouble ? 0x1p-52 : 0x1p-23) {
    TORCH_CHECK(this->logits.size() <= 8, "switch_norm: a pool has at most 8 members");
  }

  std::vector<double> weights() const {
    std::vector<double> result(logits.size());
    switch_norm::sparsestmax(logits.data(), int64_t(logits.size()), radius, epsilon, result.data());
    return result;
  }

  std::vector<double> gradient(const Tensor& dweights) const {
    std::vector<double> result(logits.size());
    switch_norm::sparsestmax_gradient(logits.data(), int64_t(logits.size()), radius, epsilon, read(dweights).data(),
                                result.data());
    return result;
  }

  static std::vector<double> read(const Tensor& tensor) {
    std::vector<double> values(tensor.numel());
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "switch_norm::sparse_switch", [&] {
      const Tensor contiguous = tensor.contiguous();
      std::copy_n(contiguous.const_data_ptr<scalar_t>(), values.size(), values.begin());
    });
    return values;
  }

  static void write(const std::vector<double>& values, Tensor& tensor) {
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "switch_norm::sparse_switch", [&] {
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

// Fixes weights that are one-hot, and sets the logits of fixed weights to these weights.
void fix_choice(Tensor& logits, const Tensor& radius, Tensor& fixed, Tensor& choice) {
  bool& is_fixed = *fixed.mutable_data_ptr<bool>();
  if (!is_fixed) {
    const auto weights = SparseSwitch(logits, radius).weights();
    SparseSwitch::write(weights, choice);
    is_fixed = *std::max_element(weights.begin(), weights.end()) >= 1;
  }
  if (!is_fixed) return;
  SparseSwitch::write(SparseSwitch::read(choice), logits);
  logits.unsafeGetTensorImpl()->bump_version();  // notifies autograd, which may have saved them
}

// ------------------------------------------------------------------------------------------------ gradients

template <class Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

optional<Tensor> to_optional(const Tensor& tensor) {
  return tensor.defined() ? optional<Tensor>(tensor) : std::nullopt;
}

void reject_second_derivative() {
  TORCH_CHECK(!at::GradMode::is_enabled(),
              "the kernels of switch norms have no second derivative: use study.norms.plain_norms()");
}

struct Normalize : torch::autograd::Function<Normalize> {
  static variable_list forward(torch::autograd::AutogradContext* context, const Tensor& x, const Tensor& mean_switch,
                               const Tensor& var_switch, const Tensor& weight, const Tensor& bias,
                               const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
                               int64_t members, int64_t groups, int64_t chunks, int64_t correction, double eps,
                               bool softmax) {
    static const auto op = find_operator<decltype(::forward)>("switch_norm::forward");
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
    reject_second_derivative();
    static const auto op = find_operator<decltype(::backward)>("switch_norm::backward");
    const auto saved = context->get_saved_variables();
    const auto options = context->saved_data["options"].toIntVector();
    auto [dx, dweight, dbias, dmean, dvar] =
        op.call(dy[0], saved[0], saved[1], saved[2], saved[3], saved[4], to_optional(saved[5]), to_optional(saved[6]),
                options[0], options[1], options[2], options[3], context->saved_data["eps"].toDouble(), options[4]);
    variable_list gradients = {dx, dmean, dvar, dweight, dbias};
    gradients.resize(13);  // one entry for each argument of forward
    return gradients;
  }
};

struct MixSparse : torch::autograd::Function<MixSparse> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& logits, const Tensor& radius,
                        const Tensor& fixed, const Tensor& choice) {
    static const auto op = find_operator<decltype(::sparse_switch)>("switch_norm::sparse_switch");
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({logits, radius, fixed});
    return op.call(logits, radius, fixed, choice);
  }

  static variable_list backward(torch::autograd::AutogradContext* context, variable_list dweights) {
    reject_second_derivative();
    static const auto op = find_operator<decltype(::sparse_switch_backward)>("switch_norm::sparse_switch_backward");
    const auto saved = context->get_saved_variables();
    return {op.call(dweights[0], saved[0], saved[1], saved[2]), Tensor(), Tensor(), Tensor()};
  }
};

Tensor sparse_switch_autograd(const Tensor& logits, const Tensor& radius, const Tensor& fixed, const Tensor& choice) {
  return MixSparse::apply(logits, radius, fixed, choice);
}

Triple forward_autograd(const Tensor& x, const Tensor& mean_switch, const Tensor& var_switch, const Tensor& weight,
                        const Tensor& bias, const optional<Tensor>& running_mean, const optional<Tensor>& running_var,
                        int64_t members, int64_t groups, int64_t chunks, int64_t correction, double eps, bool softmax) {
  auto result = Normalize::apply(x, mean_switch, var_switch, weight, bias, running_mean, running_var, members, groups,
                                 chunks, correction, eps, softmax);
  return {result[0], result[1], result[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(switch_norm, CPU, m) {
  m.impl("forward", forward);
  m.impl("backward", backward);
  m.impl("update_running_statistics", update_running_statistics);
  m.impl("sparse_switch", sparse_switch);
  m.impl("sparse_switch_backward", sparse_switch_backward);
  m.impl("fix_choice", fix_choice);
}

TORCH_LIBRARY_IMPL(switch_norm, Autograd, m) {
  m.impl("forward", forward_autograd);
  m.impl("sparse_switch", sparse_switch_autograd);
}
