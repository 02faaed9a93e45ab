// In place of torch's own header of this name: what DeepSpeed's shared-memory communication uses of it. Torch's brings
// its whole C++ interface of modules and optimizers, which a compiler reads for a minute.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

namespace torch {
using at::empty_like;
using at::Tensor;
using c10::DeviceType;
}  // namespace torch
