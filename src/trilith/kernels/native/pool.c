/* A small pool of threads that take chunks of one job; they sleep when there is none.
 *
 * Within a decoding step the next job comes in microseconds, so they look for it for some tens of
 * microseconds first, and offer their core to others while they look.
 * Whoever is free takes the next chunk, so a thread that the system holds back delays one chunk and
 * not the whole job; the caller works too, and waits only for chunks that were begun. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "trilith.h"

/* What a worker needs to join a job, finish it, and sleep. The lock is for sleeping alone: while a
 * step runs, its jobs begin and end by the counters, since two threads that end a job at the same
 * time would otherwise meet at the lock, and the system would put one of them to sleep. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int num_workers;
    atomic_int num_asleep, caller_asleep;
    atomic_int places;   /* workers that may still join */
    atomic_int finished; /* of those that joined */
    chunk_task *task;
    void *context;
    int64_t count;
    atomic_int_fast64_t next;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

/* Held by the caller whose job it is; another caller meanwhile works alone. */
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

enum { LOOKS = 32, PAUSES_PER_LOOK = 32 };

/* Wait until *number is (or is no more) a value, but not for long; returns whether it came. */
static int look_for(atomic_int *number, int value, int equal) {
    for (int look = 0; look < LOOKS; look++) {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if ((atomic_load_explicit(number, memory_order_acquire) == value) == equal) return 1;
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
        }
        sched_yield();
    }
    return 0;
}

/* Take one of the places; returns the worker's number, or 0 where none is left. */
static int join_job(void) {
    int places = atomic_load(&pool.places);
    while (places > 0)
        if (atomic_compare_exchange_weak(&pool.places, &places, places - 1)) return places;
    return 0;
}

static void take_chunks(int worker) {
    for (;;) {
        int64_t chunk = atomic_fetch_add(&pool.next, 1);
        if (chunk >= pool.count) return;
        pool.task(pool.context, chunk, worker);
    }
}

static void leave_job(void) {
    atomic_fetch_add(&pool.finished, 1);
    if (!atomic_load(&pool.caller_asleep)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_signal(&pool.done);
    pthread_mutex_unlock(&pool.lock);
}

static void sleep_until_called(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.num_asleep, 1);
    while (atomic_load(&pool.places) == 0) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.num_asleep, 1);
    pthread_mutex_unlock(&pool.lock);
}

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        int worker = join_job();
        if (worker) {
            take_chunks(worker);
            leave_job();
        }
        if (!look_for(&pool.places, 0, 0)) sleep_until_called();
    }
    return NULL;
}

/* A forked child has none of the threads. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pthread_mutex_init(&owner, NULL);
    pool.num_workers = 0;
    pool.num_asleep = pool.caller_asleep = pool.places = pool.finished = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_threads); }

static int start_workers(int wanted) {
    while (pool.num_workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL)) break;
        pthread_detach(thread);
        pool.num_workers++;
    }
    return pool.num_workers < wanted ? pool.num_workers : wanted;
}

static void wake_sleepers(void) {
    if (!atomic_load(&pool.num_asleep)) return;
    pthread_mutex_lock(&pool.lock);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

static void wait_for_others(int joined) {
    if (look_for(&pool.finished, joined, 1)) return;
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_asleep, 1);
    while (atomic_load(&pool.finished) != joined) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.caller_asleep, 0);
    pthread_mutex_unlock(&pool.lock);
}

void run_chunks(int threads, int64_t count, chunk_task *task, void *context) {
    if (threads > count) threads = (int)count;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&owner)) {
        for (int64_t chunk = 0; chunk < count; chunk++) task(context, chunk, 0);
        return;
    }
    pthread_once(&once, watch_forks);
    pool.task = task;
    pool.context = context;
    pool.count = count;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.finished, 0);
    int offered = start_workers(threads - 1);
    atomic_store(&pool.places, offered);
    wake_sleepers();
    take_chunks(0);
    /* Who has not joined by now no longer can. */
    wait_for_others(offered - atomic_exchange(&pool.places, 0));
    pthread_mutex_unlock(&owner);
}
