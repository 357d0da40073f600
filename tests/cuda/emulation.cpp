// Runs the threads of a block as fibers, and fences memory.
#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <csetjmp>
#include <csignal>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace emulation {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = 128 * 1024;
enum Order { kAscending, kDescending, kRandom };

// A place where `expected` threads meet.
struct Barrier {
  int expected = 0, arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  int kind = -1;
  uint32_t words[32 * 8];
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
  const Barrier* waits_for = nullptr;
  int generation = 0;
};

// Everything about the launch that runs; there is one at a time.
struct Machine {
  Order order = kAscending;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier block;
  const std::function<void()>* thread = nullptr;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  jmp_buf scheduler;
  sigjmp_buf launch;
  ucontext_t scheduler_context;
  unsigned running = 0;
  std::string error;
} machine;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void fail(const char* what) {
  if (machine.error.empty()) {
    machine.error = std::string(what) + " (block " + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) +
                    ", " + std::to_string(block_index.z) + ", thread " + std::to_string(machine.running) + ")";
  }
  siglongjmp(machine.launch, 1);
}

void on_fault(int) { fail("access beyond a fence"); }

void yield() {
  if (_setjmp(machine.fibers[machine.running].at) == 0) _longjmp(machine.scheduler, 1);
}

void wait(Barrier& barrier) {
  Fiber& fiber = machine.fibers[machine.running];
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  fiber.waits_for = &barrier;
  fiber.generation = barrier.generation;
  yield();
  fiber.waits_for = nullptr;
}

void run_thread() {
  (*machine.thread)();
  machine.fibers[machine.running].done = true;
  _longjmp(machine.scheduler, 1);
}

void resume(unsigned index) {
  Fiber& fiber = machine.fibers[index];
  machine.running = index;
  thread_index = dim3(index);
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_thread, 0);
  setcontext(&fiber.start);
}

// Runs a thread until it waits or ends; false where it cannot run.
bool advance(unsigned index) {
  const Fiber& fiber = machine.fibers[index];
  if (fiber.done || (fiber.waits_for != nullptr && fiber.waits_for->generation == fiber.generation)) return false;
  resume(index);
  return true;
}

// One step of every thread that can run, in random order: as evenly as threads can go on.
bool step_evenly(std::vector<unsigned>& order, std::mt19937& random) {
  std::shuffle(order.begin(), order.end(), random);
  bool moved = false;
  for (const unsigned index : order) moved = advance(index) || moved;
  return moved;
}

// One step of the first warp that can run: a warp runs as far ahead of those behind it as barriers allow.
bool step_greedily(const std::vector<unsigned>& order) {
  for (size_t first = 0; first < order.size(); first += 32) {
    bool moved = false;
    for (size_t lane = first; lane < first + 32; ++lane) moved = advance(order[lane]) || moved;
    if (moved) return true;
  }
  return false;
}

void run_block(std::vector<unsigned>& order, std::mt19937& random) {
  machine.block = {static_cast<int>(machine.fibers.size())};
  for (Fiber& fiber : machine.fibers) fiber.started = fiber.done = false, fiber.waits_for = nullptr;
  for (Warp& warp : machine.warps) warp.barrier = {32}, warp.kind = -1;
  while (machine.order == kRandom ? step_evenly(order, random) : step_greedily(order)) {
  }
  for (const Fiber& fiber : machine.fibers) {
    if (!fiber.done) fail("a barrier that not all threads reach");
  }
}

size_t pages_of(size_t bytes) { return (bytes + page() - 1) / page(); }

// Memory between two pages that nobody may touch, full of NaN.
struct Fenced {
  unsigned char *region, *first;
  size_t pages;

  explicit Fenced(size_t bytes) : pages(pages_of(bytes > 0 ? bytes : 1)) {
    region = static_cast<unsigned char*>(mmap(nullptr, (pages + 2) * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    first = region + page();
    mprotect(first, pages * page(), PROT_READ | PROT_WRITE);
    std::memset(first, 0xff, pages * page());
  }
  // The last place for so many bytes, aligned as a GPU's vectors must be.
  unsigned char* last(size_t bytes) const { return first + pages * page() - (bytes + 15) / 16 * 16; }
  void free() const { munmap(region, (pages + 2) * page()); }
};

std::vector<Fenced> given;

}  // namespace

unsigned char* shared_memory() { return machine.shared; }

void wait_for_block() { wait(machine.block); }

const uint32_t* exchange(int kind, const uint32_t* given, int words) {
  Warp& warp = machine.warps[machine.running / 32];
  if (warp.barrier.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp at different instructions");
  std::memcpy(warp.words + machine.running % 32 * words, given, words * sizeof(uint32_t));
  wait(warp.barrier);
  return warp.words;
}

void release_exchange() { wait(machine.warps[machine.running / 32].barrier); }

// All blocks, until one fails.
void run_blocks() {
  std::vector<unsigned> order(block_size.x);
  std::iota(order.begin(), order.end(), 0u);
  if (machine.order == kDescending) std::reverse(order.begin(), order.end());
  std::mt19937 random(1);
  const uint64_t blocks = static_cast<uint64_t>(grid_size.x) * grid_size.y * grid_size.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = machine.order == kDescending ? blocks - 1 - i : i;
    block_index = dim3(static_cast<unsigned>(at % grid_size.x), static_cast<unsigned>(at / grid_size.x % grid_size.y),
                       static_cast<unsigned>(at / grid_size.x / grid_size.y));
    std::memset(machine.shared, 0xff, machine.shared_bytes);
    run_block(order, random);
  }
}

void run_until_failure() {
  if (sigsetjmp(machine.launch, 1) == 0) run_blocks();
}

const char* launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  if (block.x % 32 != 0 || block.x > 1024 || block.y != 1 || block.z != 1) return "block size";
  machine.error.clear();
  machine.thread = &thread;
  while (machine.fibers.size() > block.x) machine.fibers.pop_back();
  while (machine.fibers.size() < block.x) {
    machine.fibers.emplace_back();
    machine.fibers.back().stack.reset(new char[kStack]);
  }
  machine.warps.resize(block.x / 32);
  grid_size = grid;
  block_size = block;
  const Fenced shared(shared_bytes);
  machine.shared = shared.last(shared_bytes);
  machine.shared_bytes = shared_bytes;

  // A stack of its own, so that a fault of a fiber is told on one that is whole.
  std::vector<char> alternate(64 * 1024);
  stack_t stack = {}, old_stack;
  stack.ss_sp = alternate.data();
  stack.ss_size = alternate.size();
  sigaltstack(&stack, &old_stack);
  struct sigaction action = {}, old_fault, old_bus;
  action.sa_handler = on_fault;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGSEGV, &action, &old_fault);
  sigaction(SIGBUS, &action, &old_bus);
  run_until_failure();
  sigaction(SIGSEGV, &old_fault, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);

  shared.free();
  return machine.error.empty() ? nullptr : machine.error.c_str();
}

}  // namespace emulation

// For tests: 0 ascending, 1 descending, 2 random.
extern "C" void emulation_set_order(int order) { emulation::machine.order = static_cast<emulation::Order>(order); }

// Memory between two fences: it ends at one (to 16 bytes), or begins at the other.
extern "C" void* emulation_fenced(size_t bytes, int at_end) {
  const emulation::Fenced fenced(bytes);
  emulation::given.push_back(fenced);
  return at_end != 0 ? fenced.last(bytes) : fenced.first;
}

extern "C" void emulation_free() {
  for (const emulation::Fenced& fenced : emulation::given) fenced.free();
  emulation::given.clear();
}
