// In place of torch's own header of this name, which declares every operator.
#pragma once

#include <ATen/core/Tensor.h>
