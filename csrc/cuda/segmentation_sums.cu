// The launches of segmentation_sums.
#include "cuda/segmentation_sums.cuh"

#include "cuda/sum_parts.cuh"

namespace d2ls::cuda {

static int sums_blocks(const Device& device, const ClassifyCall& of) {
  return blocks_an_image(device, of, sums_blocks_an_sm, sums_pixels);
}

int64_t segmentation_sums_scratch(const Device& device, const SegmentationCall& call) {
  return call.of.batch * sums_blocks(device, call.of) * (2 + 3 * static_cast<int64_t>(call.of.classes));
}

Error segmentation_sums(const Device& device, const SegmentationCall& call, const SegmentationSums& sums,
                        float* scratch) {
  const ClassifyCall& of = call.of;
  if (const Error error = check_gradients(of); !error.empty()) {
    return error;
  }
  return by_type(of.type, [&](auto kind) {
    return by_channels(of.channels, [&](auto channels) -> Error {
      using T = typename decltype(kind)::Number;
      constexpr int units = channels / 16;
      const uint32_t shared = 4 * of.classes * of.prototypes * units + (4 * of.classes + 15) / 16 * 16 +
                              ClassSums::bytes(of.classes, sums_warps);
      const int blocks = sums_blocks(device, of);
      const SegmentationArguments arguments{classify_arguments(of, blocks), LabelArguments(call), scratch};
      const Error error = launch(device, segmentation_sums_kernel<T, units>, of.batch * blocks, sums_threads, shared,
                                 arguments);
      const int64_t parts = of.batch * blocks;
      const int k = of.classes;
      return !error.empty() ? error
                            : sum_parts(device, 2 + 3 * k,
                                        {{scratch, sums.cross_entropy, 1, parts, 1},
                                         {scratch + 1, sums.wrong, 1, parts, 1},
                                         {scratch + 2, sums.overlap, 1, parts, k},
                                         {scratch + 2 + k, sums.volume, 1, parts, k},
                                         {scratch + 2 + 2 * k, sums.count, 1, parts, k}});
    });
  });
}

}  // namespace d2ls::cuda
