use super::tables;

const TEXT: &str = "\
# TYPE mayfly_boot_phase_start_seconds gauge
mayfly_boot_phase_start_seconds{phase=\"create VM\",thread=\"main\"} 0.0001
mayfly_boot_phase_start_seconds{phase=\"start\",thread=\"vcpu 0\"} 0.0005
# TYPE mayfly_boot_phase_seconds gauge
mayfly_boot_phase_seconds{phase=\"create VM\",thread=\"main\"} 0.000125
mayfly_boot_phase_seconds{phase=\"start\",thread=\"vcpu 0\"} 0
# TYPE mayfly_vcpu_exits_total counter
mayfly_vcpu_exits_total{vcpu=\"0\",kind=\"io_out\"} 12
mayfly_vcpu_exits_total{vcpu=\"0\",kind=\"halt\"} 3
mayfly_vcpu_exits_total{vcpu=\"1\",kind=\"halt\"} 4
# TYPE mayfly_net_bytes_total counter
mayfly_net_bytes_total{interface=\"eth0\",direction=\"receive\"} 2048
mayfly_net_bytes_total{interface=\"eth0\",direction=\"transmit\"} 0
# TYPE mayfly_drive_errors_total counter
mayfly_drive_errors_total{drive=\"root\"} 1
# TYPE mayfly_drive_latency_seconds histogram
mayfly_drive_latency_seconds_bucket{drive=\"root\",operation=\"read\",le=\"0.000001\"} 0
mayfly_drive_latency_seconds_bucket{drive=\"root\",operation=\"read\",le=\"0.000002\"} 100
mayfly_drive_latency_seconds_bucket{drive=\"root\",operation=\"read\",le=\"+Inf\"} 100
mayfly_drive_latency_seconds_sum{drive=\"root\",operation=\"read\"} 0.00015
mayfly_drive_latency_seconds_count{drive=\"root\",operation=\"read\"} 100
# TYPE mayfly_memory_bytes gauge
mayfly_memory_bytes 134217728
mayfly_unclaimed_accesses_total{space=\"port\"} 7
";

#[test]
fn each_number_is_in_the_table_of_what_it_is_of() {
    assert_eq!(
        tables(TEXT).unwrap(),
        "\
phases of the start
                   start  length
  create VM       100 us  125 us
  start [vcpu 0]  500 us       0

vCPUs
     io_out exits  halt exits
  0            12           3
  1             -           4

drives
                         root
  errors                    1
  read latency p50     1.5 us
  read latency p99    1.99 us
  read latency timed      100

network interfaces
                   eth0
  receive bytes   2 KiB
  transmit bytes    0 B

machine
  memory bytes             128 MiB
  port unclaimed accesses        7
"
    );
}

#[test]
fn a_machine_without_numbers_says_so() {
    assert_eq!(tables("").unwrap(), "there are no metrics\n");
}
