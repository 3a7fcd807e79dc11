#include "runtime/recorded_denoiser.h"

#include <cstring>

namespace aigc {

Denoiser::Outputs RecordedDenoiser::evaluate(int64_t k, int64_t rows, int64_t count, const float*,
                                             const float*, float*, Poll& poll) const {
  const Program& program = programs_.at(rows);
  for (const Schedule& schedule : program.schedules)
    std::memcpy(schedule.target, schedule.source + (k - program.first) * schedule.bytes,
                size_t(schedule.bytes));
  program.enter[size_t(k % kStates)]->run(poll);
  for (const Recording* part : program.network) part->run(poll);
  program.leave[size_t(k % 2)]->run(poll);
  const float* outputs = program.outputs[size_t(k % 2)];
  return {outputs, guided_ ? outputs + rows * count : nullptr};
}

}  // namespace aigc
