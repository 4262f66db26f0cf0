// How the kernels reach the host's threads without knowing torch: the registration file passes torch's own pool.
#pragma once

#include <cstdint>
#include <functional>

namespace d2ls {

using Range = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t count, int64_t grain, const Range& body)>;

}  // namespace d2ls
