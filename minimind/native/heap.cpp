// An allocator for large CPU tensors, which keeps freed memory for the next tensors instead of returning it to the
// system.
//
// A training step on a CPU allocates and frees a gigabyte of tensors whose sizes follow the lengths of its pairs. If
// the memory goes back to the system, the system clears each page when it is next used, which takes a tenth of a step.
// If the C library keeps it, it becomes fragmented: glibc over-allocates for alignment, gives the margin to small
// objects, and a freed block is then too small for a tensor of its own former size.
//
// Here one range of addresses holds large tensors only. It grows at its end; a freed block is merged with free
// neighbours; a tensor gets the smallest free block that holds it (best fit). Small tensors and everything else stay
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

static const size_t LARGE = size_t(64) << 10;  // bytes of the smallest tensor that is allocated here
static const size_t ALIGN = 64;                // bytes; torch and its kernels expect a cache line
static const size_t GROW = size_t(64) << 20;   // bytes that are made usable at a time

class Range {
public:
    // Reserves as many addresses as the machine has memory; no memory is used yet. False if the system refuses.
    bool reserve() {
        const size_t size = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE)) / GROW * GROW;
        void* start = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (size == 0 || start == MAP_FAILED) return false;
        begin_ = top_ = usable_ = static_cast<char*>(start);
        end_ = begin_ + size;
        return true;
    }

    bool contains(const void* at) const { return at >= begin_ && at < end_; }

    // A block of at least so many bytes; nullptr if the range is full.
    char* allocate(size_t bytes) {
        // A negative size that was converted to unsigned as well: rounding it up would overflow to 0.
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
        allocated_[at] = bytes;
        return at;
    }

    void release(char* at) {
        const std::lock_guard<std::mutex> guard(lock_);
        const auto block = allocated_.find(at);
        merge(at, block->second);
        allocated_.erase(block);
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

    // Adds a free block, merged with the free blocks before and after it; where the merged block begins.
    char* merge(char* at, size_t bytes) {
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

    // Extends the range so that it ends with a free block of at least so many bytes; nullptr if it cannot.
    char* grow(size_t bytes) {
        const auto last = free_.empty() ? free_.end() : std::prev(free_.end());
        const size_t free_at_end = last != free_.end() && last->first + last->second == top_ ? last->second : 0;
        const size_t more = bytes - free_at_end;
        if (more > size_t(end_ - top_)) return nullptr;
        if (more > size_t(usable_ - top_)) {
            const size_t wanted = (more - size_t(usable_ - top_) + GROW - 1) / GROW * GROW;
            if (mprotect(usable_, wanted, PROT_READ | PROT_WRITE) != 0) return nullptr;
            usable_ += wanted;
        }
        top_ += more;
        return merge(top_ - more, more);
    }

    std::mutex lock_;
    char *begin_ = nullptr, *end_ = nullptr;
    char* usable_ = nullptr;                      // end of what mprotect has made usable
    char* top_ = nullptr;                         // end of what tensors have used; no page beyond it was touched
    Blocks free_;                                 // size by address
    std::set<std::pair<size_t, char*>> by_size_;  // the same by size, then by address: best fit
    std::unordered_map<char*, size_t> allocated_;     // size of each block in use
};

// Never destroyed: tensors may be freed after the destructors of static objects have run.
Range& range = *new Range;

void release(void* at) {
    if (range.contains(at))
        range.release(static_cast<char*>(at));
    else
        c10::GetDefaultCPUAllocator()->raw_deleter()(at);
}

struct Heap final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        char* at = bytes < LARGE ? nullptr : range.allocate(bytes);
        // Torch's allocator, which also raises the error if there is no memory.
        if (at == nullptr) return c10::GetDefaultCPUAllocator()->allocate(bytes);
        return {at, at, &release, c10::Device(c10::DeviceType::CPU)};
    }

    // Frees memory of this heap, and memory that torch's allocator gave out before the heap was installed.
    c10::DeleterFnPtr raw_deleter() const override { return &release; }

    void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Heap& heap = *new Heap;

}  // namespace

// Makes this heap torch's CPU allocator; call it once. Returns 0, or 1 if the system refuses the addresses.
extern "C" int keep_memory() {
    if (!range.reserve()) return 1;
    // The child of a fork has only the thread that forked: a lock that another thread held would never be released in
    // it.
    pthread_atfork([] { range.lock(); }, [] { range.unlock(); }, [] { range.unlock(); });
    c10::SetAllocator(c10::DeviceType::CPU, &heap, 1);
    return 0;
}
