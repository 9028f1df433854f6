/* Load for the benchmark in the virtual machine: small enough that what is measured is the kernel.
 *
 *   vm_load serve PORT                          answers each connection's first byte with one byte
 *   vm_load ask ADDRESS PORT COUNT CONCURRENT   COUNT connections, each asked once; prints JSON
 *
 * Connections end by a reset of the client, so that neither side keeps ports in TIME_WAIT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_EVENTS = 64, MAX_FDS = 4096 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void watch(int poll, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

_Noreturn static void serve(int port) {
    int one = 1, poll = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) die("listen");
    watch(poll, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(poll, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client;
                while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) watch(poll, client, EPOLLIN);
                continue;
            }
            char byte;
            if (read(fd, &byte, 1) == 1) {
                if (write(fd, &byte, 1) != 1) close(fd);
            } else {
                close(fd);
            }
        }
    }
}

static int begin(int poll, struct sockaddr_in *to, int64_t *began) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || fd >= MAX_FDS) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    began[fd] = now_ns();
    if (connect(fd, (struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) die("connect");
    watch(poll, fd, EPOLLOUT);
    return fd;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int ask(const char *address, int port, int total, int concurrent) {
    static int64_t began[MAX_FDS];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int64_t *took = calloc(total, sizeof *took);
    int poll = epoll_create1(0), started = 0, connected = 0, done = 0, failed = 0;
    inet_pton(AF_INET, address, &to.sin_addr);
    int64_t start = now_ns();
    while (started < concurrent && started < total) begin(poll, &to, began), started++;
    while (done < total) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(poll, events, MAX_EVENTS, 10000);
        if (count <= 0) die("nothing for ten seconds");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            char byte = '?';
            if (events[i].events & (EPOLLERR | EPOLLHUP)) {
                failed++;
            } else if (events[i].events & EPOLLOUT) {
                struct epoll_event next = {.events = EPOLLIN, .data.fd = fd};
                took[connected++] = now_ns() - began[fd];
                if (write(fd, &byte, 1) == 1 && !epoll_ctl(poll, EPOLL_CTL_MOD, fd, &next)) continue;
                failed++;
            } else if (read(fd, &byte, 1) != 1) {
                failed++;
            }
            close(fd);
            done++;
            if (started < total) begin(poll, &to, began), started++;
        }
    }
    double seconds = (now_ns() - start) / 1e9;
    qsort(took, connected, sizeof *took, by_size);
    printf("{\"connections_per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"failed\": %d}\n", total / seconds,
           connected ? took[connected / 2] / 1e3 : 0, connected ? took[connected * 99 / 100] / 1e3 : 0, failed);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) serve(atoi(argv[2]));
    if (argc == 6 && !strcmp(argv[1], "ask")) return ask(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    fprintf(stderr, "usage: see the source\n");
    return 2;
}
