// What libtorch can do only through its dispatcher: products with weights that oneDNN has packed.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "../guarded.h"

namespace {

template <class Signature>
auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

extern "C" {

// `weight` packed for products with about `rows` rows, and where the values lie.
char* realm_pack(const at::Tensor* weight, int64_t rows, at::Tensor** packed, void** data, int64_t* bytes) {
  return guarded([&] {
    auto result = operation<at::Tensor(const at::Tensor&, std::optional<c10::SymInt>)>(
        "mkldnn::_reorder_linear_weight").call(*weight, c10::SymInt(rows));
    *data = reinterpret_cast<void*>(operation<int64_t(const at::Tensor&)>("mkldnn::data_ptr").call(result));
    *bytes = operation<int64_t(const at::Tensor&)>("mkldnn::_nbytes").call(result);
    *packed = new at::Tensor(std::move(result));
  });
}

// `x` times the transposed `weight`.
char* realm_linear(const at::Tensor* x, const at::Tensor* weight, at::Tensor** out) {
  return guarded([&] {
    using Signature = at::Tensor(
        const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
        c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
    static const auto linear = operation<Signature>("mkldnn::_linear_pointwise");
    *out = new at::Tensor(linear.call(*x, *weight, std::nullopt, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt));
  });
}

}
