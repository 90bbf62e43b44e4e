// Copies from global to shared memory that go on beside what follows (cp.async).

DEVICE u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
// BYTES (4, 8 or 16, to which both addresses are aligned) to a shared address; zeros unless `in`.
template <int BYTES>
DEVICE void copy_async(u32 to, const void* from, bool in) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(in ? BYTES : 0));
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;"); }
// All but the PENDING latest groups have arrived, for the thread that asked for them.
template <int PENDING>
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
