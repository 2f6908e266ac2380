// What libtorch does for a GPU: a stream of its pool, and products on that. It is asked through what it has for devices
// of any kind, so that nothing of CUDA is needed to build or link this, and the same product can run on a CPU.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <array>
#include <cstring>
#include <exception>
#include <optional>

namespace {

c10::Device gpu(int32_t number) {
  return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(number)};
}

// A C++ exception must not unwind into Rust, so that each function returns its text, or null.
template <class Body>
char* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an unknown exception");
  }
}

}  // namespace

extern "C" {

// As in `torch.rs`.
struct RealmProduct {
  // Of the GPU, or -1 on a CPU, and the number of its stream.
  int32_t device;
  // 0 is f32, 1 bf16, 2 f16.
  int32_t element;
  int64_t stream;
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  void* x;
  void* weight;
  // Null, or `x` and `weight` are e4m3.
  void* x_scales;
  void* weight_scales;
  void* bias;
  void* out;
};

// A stream of libtorch's pool for a GPU, which nobody else in this process takes: libtorch's number for it, and the
// driver's handle. From here on products round once: sums are of f32 that is not cut down, whatever the environment says.
char* realm_stream(int32_t device, int64_t* number, void** handle) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(false);
    context.setAllowBF16ReductionCuBLAS(false);
    context.setAllowFP16ReductionCuBLAS(false);
    context.setAllowFP16AccumulationCuBLAS(false);
    // Without it libtorch's allocator, which products take their workspace from, is not there.
    context.lazyInitDevice(c10::DeviceType::CUDA);
    const c10::impl::VirtualGuardImpl devices(c10::DeviceType::CUDA);
    const c10::Stream stream = devices.getStreamFromGlobalPool(gpu(device), false);
    *number = stream.id();
    *handle = stream.native_handle();
  });
}

// `out = x · weightᵀ + bias`, in memory that is there, where rows of `x` and `weight` may have scales. On a GPU it is asked
// for on the stream, which is this thread's only meanwhile.
char* realm_multiply(const RealmProduct* product) {
  return guarded([&] {
    const auto& p = *product;
    const c10::InferenceMode no_gradients;
    const bool on_gpu = p.device >= 0;
    const c10::Device device = on_gpu ? gpu(p.device) : c10::Device(c10::DeviceType::CPU);
    std::optional<c10::StreamGuard> stream;
    if (on_gpu) {
      stream.emplace(c10::Stream(c10::Stream::UNSAFE, device, p.stream));
    }
    constexpr std::array elements{at::kFloat, at::kBFloat16, at::kHalf};
    const auto tensor_of = [&](at::ScalarType type, void* data, at::IntArrayRef shape) {
      const auto options = at::TensorOptions().dtype(type).device(device);
      // It asks the driver where memory is, unless it is told so.
      return at::for_blob(data, shape).target_device(device).options(options).make_tensor();
    };
    const auto element = elements.at(p.element);
    const bool scaled = p.x_scales != nullptr;
    const auto factor = scaled ? at::kFloat8_e4m3fn : element;
    auto out = tensor_of(element, p.out, {p.rows, p.outputs});
    const auto x = tensor_of(factor, p.x, {p.rows, p.inputs});
    const auto weight = tensor_of(factor, p.weight, {p.outputs, p.inputs}).t();
    std::optional<at::Tensor> bias;
    if (p.bias != nullptr) {
      bias = tensor_of(element, p.bias, {p.outputs});
    }
    if (scaled) {
      const auto x_scales = tensor_of(at::kFloat, p.x_scales, {p.rows, 1});
      const auto weight_scales = tensor_of(at::kFloat, p.weight_scales, {1, p.outputs});
      at::_scaled_mm_out(out, x, weight, x_scales, weight_scales, bias, std::nullopt, element, false);
    } else if (bias) {
      at::addmm_out(out, *bias, x, weight);
    } else {
      at::mm_out(out, x, weight);
    }
  });
}

}
