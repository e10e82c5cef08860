-- A route that nobody was to fly for 30 days is gone from the result, and so from the online store.
SELECT origin,
       dest,
       count(*) AS flights_30d,
       count(DISTINCT carrier) AS carriers_30d,
       avg(arr_delay) AS avg_arr_delay_30d,
       CAST(count(*) FILTER (WHERE arr_delay <= 15) AS DOUBLE) / count(*) AS on_time_share_30d,
       CAST(max(distance) AS INTEGER) AS distance_miles,
       CAST(max(time_hour) AS DATE) AS last_scheduled_on
FROM flights
WHERE time_hour >= $interval_end - INTERVAL '30 days'
  AND time_hour < $interval_end
GROUP BY origin, dest
