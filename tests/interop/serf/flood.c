/* flood PORT PACKETS_PER_SECOND SECONDS: junk of several kinds to 127.0.0.1:PORT, at that rate or as fast as a core can.
 * Prints how many packets were handed to the kernel. Python's own senders reach a quarter of 100,000 a second. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, ROOM = 1400 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Random bytes behind the first byte of each of memberlist's messages in turn, from nearly empty to a whole packet. */
static size_t fill(unsigned char *packet, int at) {
    static const size_t sizes[] = {3, 40, 200, ROOM};
    size_t size = sizes[at % 4];
    for (size_t i = 0; i < size; i++) packet[i] = rand();
    packet[0] = at % 16;
    return size;
}

int main(int argc, char **argv) {
    static unsigned char packets[BATCH][ROOM];
    struct iovec pieces[BATCH];
    struct mmsghdr messages[BATCH];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (argc != 4) return 2;
    to.sin_port = htons(atoi(argv[1]));
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    if (out < 0 || connect(out, (struct sockaddr *)&to, sizeof to)) return 1;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){packets[i], fill(packets[i], i)};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    long sent = 0;
    double began = now();
    for (double t = began; t < began + seconds; t = now()) {
        if (sent > (t - began) * rate) {
            struct timespec rest = {0, 200000};
            nanosleep(&rest, NULL);
            continue;
        }
        int done = sendmmsg(out, messages, BATCH, 0);
        if (done > 0) sent += done;
    }
    printf("%ld\n", sent);
    return 0;
}
