// Main memory for large tensors: kept by the process, and cut so that what is freed is whole again.
//
// A step on a CPU takes and frees a gigabyte of tensors whose sizes follow the lengths of its pairs. Handed back to the
// system, every page is cleared anew when it is next used: a tenth of a step. Kept by the C library, it breaks up:
// glibc takes aligned memory with a margin, gives small objects the margin, and a hole never fits its own size again.
//
// Here one range of addresses belongs to tensors alone. It grows at its end; a free block is joined with its
// neighbours; a tensor gets the smallest free block that holds it. What small tensors and everything else need stays
// with the C library.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

namespace {

static const size_t LARGE = size_t(64) << 10;  // bytes of the smallest tensor that comes here
static const size_t ALIGN = 64;                // what torch and its kernels expect
static const size_t GROW = size_t(64) << 20;   // the system is asked for so much at a time

class Range {
public:
    // Reserves addresses for as much as the machine has; nothing is taken yet. False where the system refuses.
    bool reserve() {
        const size_t size = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) / GROW * GROW;
        void* start = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (size == 0 || start == MAP_FAILED) return false;
        begin_ = top_ = usable_ = static_cast<char*>(start);
        end_ = begin_ + size;
        return true;
    }

    bool holds(const void* at) const { return at >= begin_ && at < end_; }

    // nullptr where there is no more.
    char* take(size_t bytes) {
        // Also a negative number of bytes, which would be rounded up to none.
        if (bytes > size_t(end_ - begin_)) return nullptr;
        bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
        const std::lock_guard<std::mutex> guard(lock_);
        const auto fits = by_size_.lower_bound({bytes, nullptr});
        char* at = fits == by_size_.end() ? grow(bytes) : fits->second;
        if (at == nullptr) return nullptr;
        const auto block = free_.find(at);
        const size_t rest = block->second - bytes;
        erase(block);
        if (rest > 0) insert(at + bytes, rest);
        taken_[at] = bytes;
        return at;
    }

    void give(char* at) {
        const std::lock_guard<std::mutex> guard(lock_);
        const auto taken = taken_.find(at);
        join(at, taken->second);
        taken_.erase(taken);
    }

    void lock() { lock_.lock(); }
    void unlock() { lock_.unlock(); }

private:
    using Blocks = std::map<char*, size_t>;

    void insert(char* at, size_t bytes) {
        free_[at] = bytes;
        by_size_.insert({bytes, at});
    }

    void erase(Blocks::iterator block) {
        by_size_.erase({block->second, block->first});
        free_.erase(block);
    }

    // A new free block, one with those that touch it.
    char* join(char* at, size_t bytes) {
        auto next = free_.lower_bound(at);
        if (next != free_.end() && next->first == at + bytes) {
            bytes += next->second;
            erase(next++);
        }
        if (next != free_.begin()) {
            const auto before = std::prev(next);
            if (before->first + before->second == at) {
                at = before->first;
                bytes += before->second;
                erase(before);
            }
        }
        insert(at, bytes);
        return at;
    }

    // Free space at the end of the range, of at least so many bytes.
    char* grow(size_t bytes) {
        const auto last = free_.empty() ? free_.end() : std::prev(free_.end());
        const size_t there = last != free_.end() && last->first + last->second == top_ ? last->second : 0;
        const size_t more = bytes - there;
        if (more > size_t(end_ - top_)) return nullptr;
        if (more > size_t(usable_ - top_)) {
            const size_t wanted = (more - size_t(usable_ - top_) + GROW - 1) / GROW * GROW;
            if (mprotect(usable_, wanted, PROT_READ | PROT_WRITE) != 0) return nullptr;
            usable_ += wanted;
        }
        top_ += more;
        return join(top_ - more, more);
    }

    std::mutex lock_;
    char *begin_ = nullptr, *end_ = nullptr;
    char* usable_ = nullptr;                      // up to here the system has been asked
    char* top_ = nullptr;                         // up to here it has been needed; beyond it no page was touched
    Blocks free_;                                 // by address
    std::set<std::pair<size_t, char*>> by_size_;  // the same, the lowest address first among equals
    std::unordered_map<char*, size_t> taken_;     // bytes of what was given out
};

// Never destroyed: tensors may be freed after everything else.
Range& range = *new Range;

void release(void* at) {
    if (range.holds(at))
        range.give(static_cast<char*>(at));
    else
        c10::GetDefaultCPUAllocator()->raw_deleter()(at);
}

struct Heap final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        char* at = bytes < LARGE ? nullptr : range.take(bytes);
        // Torch's own, which also says what could not be had.
        if (at == nullptr) return c10::GetDefaultCPUAllocator()->allocate(bytes);
        return {at, at, &release, c10::Device(c10::DeviceType::CPU)};
    }

    // Frees what is allocated raw: of this heap, or of what torch had before it.
    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Heap& heap = *new Heap;

}  // namespace

// Gives torch this heap for the CPU, once; 0, or 1 where the system has no addresses for it.
extern "C" int keep_memory() {
    if (!range.reserve()) return 1;
    // A process that is forked while another thread is in here would find the lock taken for ever.
    pthread_atfork([] { range.lock(); }, [] { range.unlock(); }, [] { range.unlock(); });
    c10::SetAllocator(c10::DeviceType::CPU, &heap, 1);
    return 0;
}
