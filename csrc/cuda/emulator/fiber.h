// Threads that are switched by hand, many on one thread of the operating system.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

namespace d2ls::cuda::emulator {

struct Fiber {
  jmp_buf state;
  ucontext_t context;
  bool started = false;
  bool fresh = false;  // to be entered for the first time, through context
};

inline const std::function<void()>* fiber_body = nullptr;

inline void fiber_entry() { (*fiber_body)(); }

// Stacks are kept for the next block: `number` names the fiber within its block.
inline void start_fiber(Fiber& fiber, int number, const std::function<void()>* body) {
  constexpr size_t size = 256 * 1024;
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (static_cast<int>(stacks.size()) <= number) {
    stacks.push_back(std::unique_ptr<char[]>(new char[size]));
  }
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stacks[number].get();
  fiber.context.uc_stack.ss_size = size;
  fiber.context.uc_link = nullptr;
  fiber_body = body;
  makecontext(&fiber.context, fiber_entry, 0);
  fiber.fresh = true;
}

// setjmp and longjmp make no system call, as swapcontext does: only a fiber's first entry goes through its context.
[[gnu::noinline]] inline void switch_fiber(Fiber& from, Fiber& to) {
  if (_setjmp(from.state) == 0) {
    if (to.fresh) {
      to.fresh = false;
      setcontext(&to.context);
    }
    _longjmp(to.state, 1);
  }
}

}  // namespace d2ls::cuda::emulator
