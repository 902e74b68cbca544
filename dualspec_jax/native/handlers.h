// What XLA hands to the kernels of convolutions and of attention.
#pragma once

#include "xla/ffi/api/ffi.h"

using Floats = xla::ffi::Buffer<xla::ffi::F32>;
using Result = xla::ffi::Result<Floats>;

inline auto threads_and() { return xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>(); }
inline auto for_convolution() { return threads_and().Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<bool>("turned"); }
inline auto for_kernel_gradient() { return threads_and().Arg<Floats>().Arg<Floats>().Ret<Floats>(); }
inline auto for_attention() {
  return threads_and().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>();
}
inline auto for_attention_gradient() {
  return threads_and()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>();
}
