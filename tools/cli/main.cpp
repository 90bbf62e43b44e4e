#include "tools/cli/command_line.h"

int main(int argc, char** argv) { return weft::run_program(argc, argv); }
