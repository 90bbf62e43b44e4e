// The emulated device: the driver's function table, filled with functions that run PTX on the CPU. Work is done at
// once, in the order of the calls; what a check finds is thrown as an Error (device) from the call, since no status
// code could name it.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>

#include "jit/driver.h"
#include "jit/emulator/counters.h"

namespace weft {

const Driver& emulated_driver();

// The architecture that it stands for: 90, or the number of WEFT_EMU_TARGET=sm_80.
int emulated_target();

// What the launches of each kernel, by name, have done since the last reset. Of a launch that a check has ended, what came
// before.
std::map<std::string, EmulatedCounters> emulated_counters();
void reset_emulated_counters();

// Work of the host in the order of a stream: at once, or when the graph that captures it is launched.
void emulated_work(cu::CUstream stream, std::function<void()> work);

// For host code that works on the emulated device's memory itself, such as emulated GEMMs: these bytes have been
// written.
void emulated_write(const void* begin, std::size_t bytes);
// Throws if a byte is outside of an allocation or was never written; `what` names the reader.
void emulated_read(const void* begin, std::size_t bytes, const std::string& what);
// A name for the allocation that begins here, for errors.
void name_emulated(cu::CUdeviceptr address, const std::string& name);

}  // namespace weft
