// The processor's AMX tiles, for the products that use them: eight tiles of 16 rows of 64 bytes (palette 1).
// Instruction set: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter on AMX.
#pragma once

namespace moebius::kernels::cpu {

// Whether the processor has tiles and the system grants their use, which is asked once.
bool has_amx_tiles();

// Before and after a thread's products. Other code of the process may set tiles up in another way, so each
// stretch of work begins with our own set-up; processors without tiles must not come here.
void set_up_amx_tiles();
void release_amx_tiles();

}  // namespace moebius::kernels::cpu
