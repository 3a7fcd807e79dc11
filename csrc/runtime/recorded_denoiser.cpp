#include "runtime/recorded_denoiser.h"

#include <cstring>

namespace aigc {
namespace {

void put(const RecordedDenoiser::Schedule& schedule, int64_t entry) {
  const char* source = schedule.source + entry * schedule.rows * schedule.bytes;
  for (int64_t row = 0; row < schedule.rows; ++row)
    std::memcpy(schedule.target + row * schedule.pitch, source + row * schedule.bytes,
                size_t(schedule.bytes));
}

}  // namespace

Denoiser::Outputs RecordedDenoiser::evaluate(int64_t k, int64_t rows, int64_t count, const float*,
                                             const float*, float*, Poll& poll) const {
  const Program& program = programs_.at(rows);
  for (const Schedule& schedule : program.schedules) put(schedule, k - program.first);
  program.enter[size_t(k % kStates)]->run(poll);
  for (const Recording* part : program.network) part->run(poll);
  program.leave[size_t(k % 2)]->run(poll);
  const float* outputs = program.outputs[size_t(k % 2)];
  return {outputs, guided_ ? outputs + rows * count : nullptr};
}

}  // namespace aigc
