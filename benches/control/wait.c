// The floor as a process that is there already: it says so by a byte, and begins when it is sent one. Linked with floor.c, whose
// main is called floor_main then.
#include <unistd.h>

int floor_main(int argc, char **argv);

int main(int argc, char **argv) {
    char byte = '.';
    if (write(1, &byte, 1) != 1 || read(0, &byte, 1) != 1) return 1;
    return floor_main(argc, argv);
}
