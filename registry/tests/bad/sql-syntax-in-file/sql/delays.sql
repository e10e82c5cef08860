-- delays
SELECT carrier,
  avg(dep_delay AS delay
FROM flights
