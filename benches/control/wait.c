// The floor as a waiting process: it prints a byte when it is ready, and starts after an input byte. Linked
// with floor.c, whose main is renamed to floor_main.
#include <unistd.h>

int floor_main(int argc, char **argv);

int main(int argc, char **argv) {
    char byte = '.';
    if (write(1, &byte, 1) != 1 || read(0, &byte, 1) != 1) return 1;
    return floor_main(argc, argv);
}
