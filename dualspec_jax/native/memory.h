// Arrays that start with a line of the cache.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

inline float* line_up(float* p) {  // with the lines of the cache; up to kLine floats further
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64);
}
constexpr size_t kLine = 64 / sizeof(float);

// A thread's array, kept for its next call: for a part of the work, whose size does not grow with that of the batch.
inline float* scratch(std::vector<float>& kept, size_t n) {
  if (kept.size() < n + kLine) kept.resize(n + kLine);
  return line_up(kept.data());
}

// An array for one call.
class Block {
 public:
  explicit Block(size_t n) : memory_(new float[n + kLine]) {}
  float* start() { return line_up(memory_.get()); }

 private:
  std::unique_ptr<float[]> memory_;
};
