// lib/moebius/moebius-torch, the program with libtorch: one subcommand per file (cli/<name>_command.h). What
// users start is bin/moebius (front.cpp), which becomes this.
#include "base/heap.h"
#include "cli/bench_command.h"
#include "cli/ckpt_command.h"
#include "cli/convert_command.h"
#include "cli/data_command.h"
#include "cli/doctor_command.h"
#include "cli/energy_command.h"
#include "cli/eval_command.h"
#include "cli/generate_command.h"
#include "cli/moe_command.h"
#include "cli/plan_command.h"
#include "cli/quantize_command.h"
#include "cli/queue_command.h"
#include "cli/run_app.h"
#include "cli/train_command.h"
#include "cli/verify_command.h"

int main(int argc, char** argv) {
  using namespace moebius::cli;
  moebius::keep_freed_memory();
  return run_app(argc, argv, [](CLI::App& app) {
    add_train_command(app);
    add_eval_command(app);
    add_generate_command(app);
    add_plan_command(app);
    add_data_command(app);
    add_convert_command(app);
    add_quantize_command(app);
    add_ckpt_command(app);
    add_verify_command(app);
    add_moe_command(app);
    add_queue_command(app);
    add_energy_command(app);
    add_bench_command(app);
    add_doctor_command(app);
  });
}
