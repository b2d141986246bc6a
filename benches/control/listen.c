// Floor of the API socket: binds a unix socket at its argument, listens, and stays.
#include "socket.h"

#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2) errx(2, "usage: listen PATH");
    listen_at(argv[1]);
    for (;;) pause();
}
