#include "train/counted_memory.h"

#include <utility>

namespace moebius::train {
namespace {

std::atomic<int64_t> current{0}, peak{0};

struct Allocation {
  c10::DataPtr data;
  int64_t num_bytes;
};

void release(void* context) {
  const std::unique_ptr<Allocation> allocation(static_cast<Allocation*>(context));
  current -= allocation->num_bytes;
}

class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t num_bytes) override {
    const auto count = static_cast<int64_t>(num_bytes);
    auto allocation = std::make_unique<Allocation>(Allocation{inner_->allocate(num_bytes), count});
    const int64_t now = current += count;
    int64_t before = peak;
    while (before < now && !peak.compare_exchange_weak(before, now)) {
    }
    void* data = allocation->data.get();
    const c10::Device device = allocation->data.device();
    return {data, allocation.release(), &release, device};
  }

  void copy_data(void* to, const void* from, size_t num_bytes) const override {
    inner_->copy_data(to, from, num_bytes);
  }

 private:
  c10::Allocator* inner_;
};

}  // namespace

CountedMemory::CountedMemory() : before_(c10::GetAllocator(c10::DeviceType::CPU)) {
  static CountingAllocator counting(before_);
  c10::SetAllocator(c10::DeviceType::CPU, &counting);
  reset_peak();
}

CountedMemory::~CountedMemory() {
  c10::SetAllocator(c10::DeviceType::CPU, before_);
}

int64_t CountedMemory::current_bytes() const {
  return current;
}

int64_t CountedMemory::peak_bytes() const {
  return peak;
}

void CountedMemory::reset_peak() {
  peak = current.load();
}

}  // namespace moebius::train
